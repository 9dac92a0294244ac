#pragma once

#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "models/block.h"
#include "models/config.h"
#include "quantize/pipeline.h"

namespace nibble::quantize {

/// What will be done, checked before anything runs.
struct Plan {
  const Method* method = nullptr;
  std::string format;  // of the output
  models::ModelConfig config;
  const models::Architecture* architecture = nullptr;
  std::vector<models::BlockSpec> blocks;
  std::vector<std::vector<StageChoice>> stages;  // what becomes of each block's stages
};

/// Errors: InvalidArgument and Unsupported: an unknown method; flags it cannot honour; bits, group sizes and shapes
/// that do not go together, naming the layers and the sizes that do; an output folder in use; a model that is quantized
/// already.
Plan make_plan(const formats::Checkpoint& checkpoint, const PipelineOptions& options);

}  // namespace nibble::quantize
