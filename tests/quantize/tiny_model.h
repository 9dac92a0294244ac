#pragma once

#include <unistd.h>
#include <cstdint>
#include <filesystem>
#include <string>

#include "core/json.h"
#include "formats/checkpoint.h"
#include "random_layer.h"

namespace nibble::quantize {

/// A folder that is removed with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "nibble-quantize-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// UTF-8 of a code point below 0x800.
inline std::string utf8(unsigned code) {
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

/// A byte-level tokenizer: one token a byte, by GPT-2's table of printable stand-ins.
inline std::string byte_tokenizer_json() {
  Json vocab = Json::object();
  unsigned stand_in = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    vocab[utf8(printable ? byte : stand_in++)] = byte;
  }
  return Json{{"version", "1.0"},
              {"added_tokens", Json::array()},
              {"normalizer", nullptr},
              {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
              {"post_processor", nullptr},
              {"decoder", {{"type", "ByteLevel"}}},
              {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}}
      .dump();
}

inline Json tiny_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"head_dim", 16},
          {"vocab_size", 256},
          {"max_position_embeddings", 128},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", true},
          {"torch_dtype", "float16"}};
}

/// Writes a two-layer Llama with random weights and a byte tokenizer to `folder`. `embedding_of_a` replaces the first
/// value of the letter a's embedding.
inline void write_tiny_model(const std::filesystem::path& folder, float embedding_of_a = 0.1f) {
  formats::CheckpointWriter writer(folder);
  std::uint32_t seed = 1;
  const auto add_matrix = [&](const std::string& name, std::int64_t out, std::int64_t in) {
    writer.add(name, to_dtype(random_matrix(out, in, seed++, 0.1f), DType::F16));
  };
  const auto add_norm = [&](const std::string& name) {
    Tensor weight = Tensor::empty(DType::F32, {64});
    for (float& w : weight.span<float>()) w = 1 + 0.02f * static_cast<float>(seed++ % 13);
    writer.add(name, to_dtype(weight, DType::F16));
  };
  Tensor embedding = random_matrix(256, 64, seed++, 0.1f);
  embedding.matrix<float>().row('a')[0] = embedding_of_a;
  writer.add("model.embed_tokens.weight", to_dtype(embedding, DType::F16));
  add_norm("model.norm.weight");
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    add_norm(prefix + "input_layernorm.weight");
    add_norm(prefix + "post_attention_layernorm.weight");
    add_matrix(prefix + "self_attn.q_proj.weight", 64, 64);
    add_matrix(prefix + "self_attn.k_proj.weight", 32, 64);
    add_matrix(prefix + "self_attn.v_proj.weight", 32, 64);
    add_matrix(prefix + "self_attn.o_proj.weight", 64, 64);
    add_matrix(prefix + "mlp.gate_proj.weight", 96, 64);
    add_matrix(prefix + "mlp.up_proj.weight", 96, 64);
    add_matrix(prefix + "mlp.down_proj.weight", 64, 96);
  }
  writer.finish({tiny_config(), {{"tokenizer.json", byte_tokenizer_json()}}});
}

/// Text enough for `num_tokens` bytes, of varied letters.
inline std::string varied_text(std::size_t num_tokens) {
  std::string text;
  std::uint32_t state = 7;
  while (text.size() < num_tokens) {
    state = state * 1664525u + 1013904223u;
    text += static_cast<char>('a' + (state >> 24) % 26);
    if (text.size() % 6 == 0) text += ' ';
  }
  return text;
}

}  // namespace nibble::quantize
