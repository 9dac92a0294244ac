#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer/component_json.h"

namespace nibble::tokenizer {

/// Tokens that a post-processor puts around a text, such as BOS.
struct PostProcessor {
  std::vector<std::int32_t> prefix;
  std::vector<std::int32_t> suffix;
};

/// TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel (which moves offsets only), Sequence of these.
/// Errors: Unsupported naming another type, or two processors that add tokens; Corrupt.
PostProcessor parse_post_processor(const ComponentJson& json);

}  // namespace nibble::tokenizer
