#pragma once

#include "formats/checkpoint.h"
#include "quantize/calibration.h"
#include "quantize/journal.h"

namespace nibble::quantize {

/// The run's calibration samples (make_samples). Those that the model writes itself take minutes, so they become a
/// scratch state of the journal, where a resumed run finds them; text from files is simply read again.
CalibrationSamples make_saved_samples(const formats::Checkpoint& checkpoint, const CalibrationOptions& options,
                                      int num_threads, Journal& journal);

}  // namespace nibble::quantize
