#pragma once

#include "core/json.h"
#include "formats/checkpoint.h"
#include "quantize/pipeline.h"
#include "quantize/plan.h"

namespace nibble::quantize {

/// Everything that the bytes of the result depend on: program and method version, options, model files, calibration
/// text, arithmetic. Not the number of threads, from which results are independent, and not where the files lie.
///
/// Model files count by size, time of change and a digest of samples (head, tail and 64 pieces between), since reading
/// 140 GB takes longer than this is worth; calibration text by the digest of what is read of it.
/// Errors: NotFound and Unavailable of those files.
Json run_identity(const formats::Checkpoint& checkpoint, const Plan& plan, const PipelineOptions& options);

/// Everything that the statistics of the end loss depend on: program, float model, calibration text, labels,
/// arithmetic; not the method that reads them. Model and text as above.
Json statistics_identity(const formats::Checkpoint& checkpoint, const PipelineOptions& options);

}  // namespace nibble::quantize
