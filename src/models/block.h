#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "models/config.h"

/// A decoder block is an ordered list of stages (design.md §4). Serving runs them through; quantizing stops at each
/// one, because it is exactly where several linears share one input. AWQ's folds and GPTQ's shared Hessians follow
/// from this table; a quantizer never names a module.
namespace nibble::models {

/// What produces a stage's input.
enum class Prepare : std::uint8_t {
  InputNorm,          // hidden (+ previous delta) → norm
  Attention,          // rope, KV write, attention over stage 0's output
  PostAttentionNorm,  // hidden + o_proj's output → norm
  SiluMul,            // silu(gate) * up of stage 2's output
};

/// Whose output channels scale this stage's input, so that s can be folded into it (AWQ).
struct FoldProducer {
  enum class Kind : std::uint8_t {
    None,
    Norm,          // weight vector `module`.weight, one channel each
    Linear,        // rows of linear `module`, one output channel per input channel
    LinearByHead,  // v → o: input channel (head h, d) comes from row (h / heads_per_kv, d) of linear `module`
  };
  Kind kind = Kind::None;
  std::string module;  // relative to the block: "input_layernorm", "self_attn.v_proj"
};

/// One stage: an input and the linears that share it.
struct Stage {
  Prepare prepare = Prepare::InputNorm;
  std::vector<std::string> linears;  // relative to the block: "self_attn.q_proj", …; fused in this order
  FoldProducer fold_producer;
  bool adds_to_hidden = false;  // the stage's output is a residual delta
};

/// Names and shapes of one decoder block; pure data, made by an architecture file.
struct BlockSpec {
  std::string prefix;  // "model.layers.0"
  std::vector<Stage> stages;
  std::string input_norm = "input_layernorm";
  std::string post_attention_norm = "post_attention_layernorm";
  backend::AttentionSpec attention;
  float rms_norm_eps = 1e-6f;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;

  /// "model.layers.0.self_attn.q_proj"
  std::string module_name(std::string_view relative) const { return prefix + "." + std::string(relative); }
};

/// [out_features, in_features] of a linear of the block, by its relative name.
Shape linear_shape(const BlockSpec& spec, std::string_view relative);

/// Activations of one forward pass through blocks: the residual stream and what one stage hands to the next. Serving
/// has one, quantizing one per chunk of calibration tokens.
struct BlockState {
  backend::Activation hidden;                     // [tokens, hidden_size] residual stream
  std::vector<backend::Activation> stage_input;   // per stage, in the format its linear states
  std::vector<backend::Activation> stage_output;  // per stage [tokens, sum of out_features]
};

/// What a block needs besides its own weights.
struct BlockContext {
  backend::Backend& backend;
  const backend::Rope& rope;
  backend::KvCache& cache;
  const backend::ForwardBatch& batch;
  std::int64_t layer_idx;
};

/// A block with weights on a backend. `prepare(s)` then `apply(s)` for s = 0, 1, … is its forward pass.
class DecoderBlock {
 public:
  DecoderBlock(BlockSpec spec, Tensor input_norm, Tensor post_attention_norm);

  const BlockSpec& spec() const { return spec_; }
  /// Stage s's packed linears; may be set late or again (quantizing does both).
  void set_linear(std::size_t stage_idx, std::unique_ptr<backend::Linear> linear);
  const backend::Linear& linear(std::size_t stage_idx) const { return *linears_[stage_idx]; }
  bool has_linear(std::size_t stage_idx) const { return linears_[stage_idx] != nullptr; }
  /// Replaces a norm's weight after a fold. `which` is Prepare::InputNorm or PostAttentionNorm.
  void set_norm(Prepare which, Tensor weight);

  /// Stage inputs: state.stage_input[s] ← norm, attention or silu·mul, in that Activation's format.
  void prepare(std::size_t stage_idx, const BlockContext& context, BlockState& state) const;
  /// state.stage_output[s] ← linear(s)(state.stage_input[s]); a residual output is added to hidden by whoever
  /// prepares next, or by `finish`.
  void apply(std::size_t stage_idx, BlockState& state) const;
  /// Adds the last stage's output to hidden.
  void finish(const BlockContext& context, BlockState& state) const;

  /// The whole block.
  void forward(const BlockContext& context, BlockState& state) const;

 private:
  BlockSpec spec_;
  Tensor input_norm_;
  Tensor post_attention_norm_;
  std::vector<std::unique_ptr<backend::Linear>> linears_;
};

/// Activations for `capacity` tokens of blocks shaped like `spec`; `input_formats[s]` is what stage s's linear states
/// (F32 for all while quantizing).
BlockState make_block_state(backend::Backend& backend, const BlockSpec& spec, std::int64_t capacity,
                            std::span<const backend::ActivationFormat> input_formats);

/// What an architecture file provides; the rows stand in architectures.cpp.
struct Architecture {
  std::string_view name;  // "LlamaForCausalLM"
  BlockSpec (*block)(const ModelConfig& config, std::int64_t layer_idx);
  std::string_view embedding;   // "model.embed_tokens"
  std::string_view final_norm;  // "model.norm"
  std::string_view lm_head;     // "lm_head"
};

/// Errors: Unsupported, naming the architecture and the known ones.
const Architecture& find_architecture(std::string_view name);

}  // namespace nibble::models
