#include "formats/gguf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace nibble::formats {
namespace {

enum class HeadRows : std::uint8_t { AsInHuggingFace, Interleaved };

struct GgufArchitecture {
  std::string_view name;          // general.architecture
  std::string_view architecture;  // config.json's
  std::string_view model_type;
  HeadRows head_rows;
};

constexpr std::array kArchitectures{
    GgufArchitecture{"llama", "LlamaForCausalLM", "llama", HeadRows::Interleaved},
    GgufArchitecture{"qwen2", "Qwen2ForCausalLM", "qwen2", HeadRows::AsInHuggingFace},
};

/// Names of a block's modules: llama.cpp's, Hugging Face's.
constexpr std::array<std::pair<std::string_view, std::string_view>, 9> kBlockModules{{
    {"attn_norm", "input_layernorm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
}};

constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kTopModules{{
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
}};

/// Llama-3 scaling factors of the rotary frequencies; becomes rope_scaling instead of a tensor.
constexpr std::string_view kRopeFactors = "rope_freqs.weight";

const GgufArchitecture& architecture_of(const GgufFile& file) {
  const std::string_view name = file.string("general.architecture").value_or("");
  std::string known;
  for (const GgufArchitecture& row : kArchitectures) {
    if (row.name == name) return row;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", row.name);
  }
  throw Error(ErrorCode::Unsupported,
              fmt::format("general.architecture '{}' is not imported; nibble knows {}", name, known));
}

/// Metadata of the file's own architecture: key("block_count") is "llama.block_count".
class Hyperparameters {
 public:
  explicit Hyperparameters(const GgufFile& file) : file_(file), prefix_(architecture_of(file).name) {}

  std::string key(std::string_view name) const { return fmt::format("{}.{}", prefix_, name); }
  std::optional<std::int64_t> integer(std::string_view name) const { return file_.integer(key(name)); }
  std::optional<double> number(std::string_view name) const { return file_.number(key(name)); }
  std::optional<std::string_view> string(std::string_view name) const { return file_.string(key(name)); }

  std::int64_t size(std::string_view name) const {
    const auto value = integer(name);
    if (!value) throw Error(ErrorCode::Corrupt, key(name) + ": missing");
    return checked(*value, name);
  }
  std::int64_t size_or(std::string_view name, std::int64_t fallback) const {
    const auto value = integer(name);
    return value ? checked(*value, name) : fallback;
  }

 private:
  std::int64_t checked(std::int64_t value, std::string_view name) const {
    if (value > 0 && value <= std::numeric_limits<std::int32_t>::max()) return value;
    throw Error(ErrorCode::Corrupt, fmt::format("{}: {} is not a possible size", key(name), value));
  }

  const GgufFile& file_;
  std::string_view prefix_;
};

const GgufTensor& embedding_of(const GgufFile& file) {
  const auto found = file.tensors().find("token_embd.weight");
  if (found == file.tensors().end()) throw Error(ErrorCode::Corrupt, "token_embd.weight: missing");
  if (found->second.shape.rank() != 2) throw Error(ErrorCode::Corrupt, "token_embd.weight: expected a matrix");
  return found->second;
}

float largest_factor(const GgufTensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.shape.num_elements()));
  dequantize_gguf(tensor.type, tensor.bytes, values);
  if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value) && value > 0; })) {
    throw Error(ErrorCode::Corrupt, "rope_freqs.weight: expected positive factors");
  }
  return *std::max_element(values.begin(), values.end());
}

/// null where rotary positions are not scaled.
Json make_rope_scaling(const GgufFile& file, const Hyperparameters& hyper) {
  if (const auto factors = file.tensors().find(kRopeFactors); factors != file.tensors().end()) {
    return {{"rope_type", "llama3"},
            {"factor", static_cast<double>(largest_factor(factors->second))},
            {"low_freq_factor", 1.0},
            {"high_freq_factor", 4.0},
            {"original_max_position_embeddings", 8192}};
  }
  const std::string_view type = hyper.string("rope.scaling.type").value_or("none");
  if (type == "none") return nullptr;
  Json scaling{{"rope_type", type}, {"factor", hyper.number("rope.scaling.factor").value_or(1.0)}};
  if (const auto original = hyper.integer("rope.scaling.original_context_length")) {
    scaling["original_max_position_embeddings"] = *original;
  }
  return scaling;
}

void add_token_id(const GgufFile& file, const char* key, std::string_view gguf_key, Json& json) {
  if (const auto id = file.integer(gguf_key)) json[key] = *id;
}

bool has_bias(const GgufFile& file, std::string_view module) {
  return file.tensors().contains(fmt::format("blk.0.{}.bias", module));
}

template <std::size_t N>
std::optional<std::string_view> find_module(const std::array<std::pair<std::string_view, std::string_view>, N>& modules,
                                            std::string_view name) {
  for (const auto& [gguf_name, module] : modules) {
    if (gguf_name == name) return module;
  }
  return std::nullopt;
}

/// "blk.3.attn_q" → "model.layers.3.self_attn.q_proj"; nothing where no module has that name.
std::optional<std::string> hugging_face_module(std::string_view name, std::int64_t num_layers) {
  if (const auto module = find_module(kTopModules, name)) return std::string(*module);
  if (!name.starts_with("blk.")) return std::nullopt;
  name.remove_prefix(4);
  std::int64_t layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const auto digits = static_cast<std::size_t>(end - name.data());
  if (error != std::errc{} || layer < 0 || layer >= num_layers || digits >= name.size() || name[digits] != '.') {
    return std::nullopt;
  }
  const auto module = find_module(kBlockModules, name.substr(digits + 1));
  if (!module) return std::nullopt;
  return fmt::format("model.layers.{}.{}", layer, *module);
}

std::int64_t interleaved_heads(const GgufFile& file, std::string_view module, std::int64_t heads,
                               std::int64_t kv_heads) {
  if (architecture_of(file).head_rows == HeadRows::AsInHuggingFace) return 0;
  if (module.ends_with("self_attn.q_proj")) return heads;
  return module.ends_with("self_attn.k_proj") ? kv_heads : 0;
}

}  // namespace

std::int64_t GgufSource::file_row(std::int64_t row) const {
  if (interleaved_heads == 0) return row;
  const std::int64_t head_dim = tensor->shape[0] / interleaved_heads;
  const std::int64_t head = row / head_dim;
  const std::int64_t half = row % head_dim / (head_dim / 2);
  const std::int64_t pair = row % (head_dim / 2);
  return head * head_dim + 2 * pair + half;
}

Json make_config(const GgufFile& file) {
  const GgufArchitecture& row = architecture_of(file);
  const Hyperparameters hyper(file);
  if (hyper.integer("expert_count").value_or(0) > 0) {
    throw Error(ErrorCode::Unsupported, "mixture-of-experts GGUF files are not imported");
  }
  const std::int64_t hidden_size = hyper.size("embedding_length");
  const std::int64_t heads = hyper.size("attention.head_count");
  const std::int64_t head_dim =
      hyper.size_or("attention.key_length", hyper.size_or("rope.dimension_count", hidden_size / heads));
  Json config{{"architectures", Json::array({row.architecture})},
              {"model_type", row.model_type},
              {"vocab_size", embedding_of(file).shape[0]},
              {"hidden_size", hidden_size},
              {"intermediate_size", hyper.size("feed_forward_length")},
              {"num_hidden_layers", hyper.size("block_count")},
              {"num_attention_heads", heads},
              {"num_key_value_heads", hyper.size_or("attention.head_count_kv", heads)},
              {"hidden_act", "silu"},
              {"max_position_embeddings", hyper.size_or("context_length", 2048)},
              {"rms_norm_eps", hyper.number("attention.layer_norm_rms_epsilon").value_or(1e-6)},
              {"rope_theta", hyper.number("rope.freq_base").value_or(10000.0)},
              {"rope_scaling", make_rope_scaling(file, hyper)},
              {"attention_bias", has_bias(file, "attn_q")},
              {"mlp_bias", has_bias(file, "ffn_up")},
              {"tie_word_embeddings", !file.tensors().contains("output.weight")},
              {"torch_dtype", "float16"}};
  if (head_dim * heads != hidden_size) config["head_dim"] = head_dim;
  add_token_id(file, "bos_token_id", "tokenizer.ggml.bos_token_id", config);
  add_token_id(file, "eos_token_id", "tokenizer.ggml.eos_token_id", config);
  add_token_id(file, "pad_token_id", "tokenizer.ggml.padding_token_id", config);
  return config;
}

Json make_generation_config(const GgufFile& file) {
  Json config = Json::object();
  add_token_id(file, "bos_token_id", "tokenizer.ggml.bos_token_id", config);
  add_token_id(file, "eos_token_id", "tokenizer.ggml.eos_token_id", config);
  add_token_id(file, "pad_token_id", "tokenizer.ggml.padding_token_id", config);
  const auto end_of_turn = file.integer("tokenizer.ggml.eot_token_id");
  if (end_of_turn && config.contains("eos_token_id") && config["eos_token_id"] != *end_of_turn) {
    config["eos_token_id"] = Json::array({config["eos_token_id"], *end_of_turn});
  }
  return config;
}

std::map<std::string, GgufSource, std::less<>> hugging_face_tensors(const GgufFile& file) {
  const Hyperparameters hyper(file);
  const std::int64_t num_layers = hyper.size("block_count");
  const std::int64_t heads = hyper.size("attention.head_count");
  const std::int64_t kv_heads = hyper.size_or("attention.head_count_kv", heads);
  std::map<std::string, GgufSource, std::less<>> sources;
  for (const auto& [name, tensor] : file.tensors()) {
    if (name == kRopeFactors) continue;
    const std::size_t dot = name.rfind('.');
    const std::string_view suffix = dot == std::string_view::npos ? "" : name.substr(dot + 1);
    const auto module = hugging_face_module(name.substr(0, dot), num_layers);
    if (!module || (suffix != "weight" && suffix != "bias")) {
      throw Error(ErrorCode::Unsupported,
                  fmt::format("{}: no tensor of this name belongs to a {} model", name, architecture_of(file).name));
    }
    const GgufSource source{&tensor, interleaved_heads(file, *module, heads, kv_heads)};
    if (source.interleaved_heads > 0 && tensor.shape[0] % (2 * source.interleaved_heads) != 0) {
      throw Error(ErrorCode::Corrupt, fmt::format("{}: {} rows are not pairs of rows for {} heads", name,
                                                  tensor.shape[0], source.interleaved_heads));
    }
    sources.emplace(fmt::format("{}.{}", *module, suffix), source);
  }
  return sources;
}

}  // namespace nibble::formats
