#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "quantize/pipeline.h"

namespace nibble::apps {

/// Registers the flags of `nibble quantize`. The result gives what they say once they are parsed, while `command`
/// lives. Errors: those of names and contradicting flags.
std::function<quantize::PipelineOptions()> add_quantize_flags(CLI::App& command);

}  // namespace nibble::apps
