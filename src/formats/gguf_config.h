#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/json.h"
#include "formats/gguf.h"

namespace nibble::formats {

/// One tensor of the file under its Hugging Face name.
struct GgufSource {
  const GgufTensor* tensor = nullptr;
  /// llama.cpp interleaves the halves of each head's rows of q and k (architecture `llama` only): the number of heads,
  /// or 0 where rows stand as in Hugging Face's checkpoint.
  std::int64_t interleaved_heads = 0;

  /// The row of the file that is row `row` of the Hugging Face tensor.
  std::int64_t file_row(std::int64_t row) const;
};

/// config.json of the Hugging Face model that the file was made from (formats.md §8).
/// Errors: Unsupported naming the architecture; Corrupt naming the key that is missing or wrong.
Json make_config(const GgufFile& file);
/// generation_config.json: bos, eos (a list where the file also names an end of turn) and padding ids.
Json make_generation_config(const GgufFile& file);
/// "model.layers.0.self_attn.q_proj.weight" → source. Errors: Unsupported naming a tensor without a place.
std::map<std::string, GgufSource, std::less<>> hugging_face_tensors(const GgufFile& file);

}  // namespace nibble::formats
