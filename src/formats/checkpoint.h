#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/tensor.h"
#include "formats/written_tensor.h"
#include "weights/linear_weights.h"

namespace nibble::formats {

/// How one module is stored that a writer has written.
struct ModuleScheme {
  enum class Kind : std::uint8_t { Integer, Float8, Codebook };

  std::string module;
  Kind kind = Kind::Integer;
  std::int32_t bits = 4;
  /// Integer: inputs that share a scale, -1: a whole row. Float8: 128: a block, -1: a row, 0: the tensor.
  std::int64_t group_size = -1;
  bool sym = true;
  bool desc_act = false;            // its groups are scattered (g_idx)
  bool static_activations = false;  // Float8: has an input_scale

  /// Whether another module is stored the same way.
  bool is_like(const ModuleScheme& other) const {
    return kind == other.kind && bits == other.bits && group_size == other.group_size && sym == other.sym &&
           desc_act == other.desc_act && static_activations == other.static_activations;
  }
};

/// How a checkpoint is quantized, normalised over the formats' configs (formats.md §0.2, §1, §2).
struct QuantizationConfig {
  std::string method;  // "awq", "gptq", "fp8", "compressed-tensors", "squeezellm"; "gguf" for GGUF files
  std::int32_t bits = 4;
  std::int64_t group_size = 128;  // -1: one group
  bool sym = true;
  bool desc_act = false;
  std::string checkpoint_format;                    // GPTQ: "gptq" (v1) or "gptq_v2"; AWQ: "gemm"
  std::vector<std::string> modules_to_not_convert;  // as in the file; matching is the format's own
  std::vector<ModuleScheme> modules;                // to be written: every quantized module. Readers leave it empty
  Json raw;                                         // the object as it stands in the file
};

/// A model on disk, opened read-only: a Hugging Face folder (safetensors or torch.save's files, sharded or not,
/// quantized or not) or one GGUF file, seen under Hugging Face's names. Owns the mappings: tensors and dense weights
/// borrow from it. const calls are thread-safe.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  /// Errors: NotFound, Corrupt, Unsupported, InvalidArgument, each with the file and what to do.
  static std::unique_ptr<Checkpoint> open(const std::filesystem::path& path);

  virtual const std::filesystem::path& path() const = 0;
  /// config.json (made from the metadata for a GGUF file).
  virtual const Json& config() const = 0;
  virtual const std::optional<QuantizationConfig>& quantization() const = 0;

  /// Text of a side file of the model: "tokenizer.json", "tokenizer_config.json", "generation_config.json",
  /// "chat_template.jinja", "special_tokens_map.json"; nothing where it is absent. GGUF makes the first three.
  virtual std::optional<std::string> side_file(std::string_view name) const = 0;

  /// Every tensor's name, sorted.
  virtual std::vector<std::string> tensor_names() const = 0;
  virtual bool contains(std::string_view tensor) const = 0;
  /// Errors: NotFound naming tensor and file.
  virtual TensorView tensor(std::string_view name) const = 0;

  /// The weights of a linear module ("model.layers.0.self_attn.q_proj") in canonical form: dense, or by its format's
  /// reader where the module is quantized (formats::is_quantized). `shape` [out, in] is what config.json implies.
  /// Errors: NotFound; Corrupt with tensor, expected and found shape.
  virtual weights::LinearWeights linear(std::string_view module, const Shape& shape) const = 0;
  /// The module's bias as f32 [out], or an empty tensor where it has none (all-zero biases are dropped).
  virtual Tensor bias(std::string_view module, std::int64_t out_features) const = 0;

  /// Lets the kernel drop the resident pages of a module's mapped tensors. Views stay valid; a later read brings the
  /// pages back.
  virtual void drop_pages(std::string_view module) const = 0;
  /// The module is packed and its views are dead: drops the pages and frees copies that the format had to make.
  virtual void release(std::string_view module) const = 0;
  /// Bytes of all tensors as stored.
  virtual std::int64_t size_bytes() const = 0;
};

/// What a checkpoint to be written consists of besides its tensors.
struct CheckpointFiles {
  Json config;                                             // config.json, quantization_config included
  std::vector<std::pair<std::string, std::string>> texts;  // file name, content: tokenizer.json, …
};

/// Writes a Hugging Face checkpoint: shards `model-0000i-of-0000n.safetensors` up to `max_shard_bytes` (a single
/// `model.safetensors` where one suffices), index, then side files, config.json last; all under temporary names until
/// `finish`, so a crashed run never looks complete. Tensors are written as they come; memory stays at one tensor.
class CheckpointWriter {
 public:
  /// `folder` is created. Errors: InvalidArgument where it already holds a config.json; Unavailable.
  explicit CheckpointWriter(std::filesystem::path folder, std::int64_t max_shard_bytes = kMaxShardBytes);
  /// A writer that a later run can take over: until `finish` its shards lie in `scratch`, a folder of the same file
  /// system, and stay there when it is destroyed. `written` is what earlier runs synced, in order; what the shards hold
  /// beyond that is cut off, and the files come out as if one run had written them. Errors: Corrupt naming a shard that
  /// is missing or too short.
  CheckpointWriter(std::filesystem::path folder, std::filesystem::path scratch, std::span<const WrittenTensor> written,
                   std::int64_t max_shard_bytes = kMaxShardBytes);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  void add(std::string_view name, TensorView tensor);
  /// A linear in the tensors of `format`, as formats/registry.cpp names it; "dense" writes `.weight` in f16.
  /// Errors: Unsupported with the reason: a struct that the format does not hold, zero points outside GPTQ v1's range,
  /// shapes that AWQ cannot hold, …
  void add_linear(std::string_view module, const weights::LinearWeights& weights, std::string_view format);
  /// Everything added so far survives a power cut. Returns the tensors added since the last call.
  std::vector<WrittenTensor> sync();
  void finish(const CheckpointFiles& files);
  std::int64_t total_bytes() const;

  static constexpr std::int64_t kMaxShardBytes = 5'000'000'000;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::formats
