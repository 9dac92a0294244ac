#include "engine/layer_outer_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

#include "core/progress.h"
#include "engine/step.h"
#include "models/kv_scales.h"
#include "models/loader.h"

namespace nibble::engine {
namespace {

constexpr std::int64_t kScoreTileRows = 64;  // logits of a tile stay in the last-level cache

backend::KvSpec kv_spec(const models::BlockSpec& spec, DType dtype, const models::KvScales* scales) {
  backend::KvSpec kv{.dtype = dtype,
                     .num_heads = spec.attention.num_heads,
                     .num_kv_heads = spec.attention.num_kv_heads,
                     .head_dim = spec.attention.head_dim,
                     .sliding_window = spec.attention.sliding_window};
  if (scales == nullptr) return kv;
  kv.k_scale = scales->key;
  kv.v_scale = scales->value;
  return kv;
}

}  // namespace

/// All sequences on their way through the blocks, in steps of as many tokens as the engine takes.
class LayerOuterEngine::Pass {
 public:
  explicit Pass(LayerOuterEngine& engine) : engine_(engine), backend_(*engine.model_.backend) {
    std::int64_t longest = 0;
    for (const auto& sequence : engine.sequences_) {
      longest = std::max(longest, static_cast<std::int64_t>(sequence.size()));
    }
    const std::int64_t block_size = engine.options_.block_size;
    blocks_.resize(static_cast<std::size_t>((longest + block_size - 1) / block_size));
    std::iota(blocks_.begin(), blocks_.end(), 0);
    if (engine.model_.cache_dtype == DType::F8E4M3) {
      kv_scales_ = models::read_kv_scales(*engine.model_.checkpoint, engine.config_);
    }
    rope_ = backend_.make_rope({.inv_freq = models::rope_inverse_frequencies(engine.config_),
                                .attention_factor = 1,
                                .max_positions = engine.model_.max_model_len});
  }

  void embed() {
    const auto embedding = models::load_embedding(*engine_.model_.checkpoint, engine_.config_, backend_);
    backend::Activation hidden = backend_.make_activation(engine_.options_.max_num_batched_tokens,
                                                          engine_.config_.hidden_size, backend_.hidden_format());
    for (const auto& sequence : engine_.sequences_) {
      engine_.hidden_.push_back(
          Tensor::empty(DType::F32, {static_cast<std::int64_t>(sequence.size()), engine_.config_.hidden_size}));
      for_each_step(sequence, engine_.hidden_.back(), [&](const backend::ForwardBatch& batch, Matrix<float> rows) {
        backend_.embed(*embedding, batch, hidden);
        backend_.read(hidden, rows);
      });
    }
  }

  void forward(const models::DecoderBlock& block, std::size_t block_idx) {
    // One layer at a time, that of the block at work.
    const models::KvScales* scales = kv_scales_.empty() ? nullptr : &kv_scales_[block_idx];
    const auto cache = backend_.make_kv_cache({kv_spec(block.spec(), engine_.model_.cache_dtype, scales)},
                                              static_cast<std::int64_t>(blocks_.size()), engine_.options_.block_size);
    std::vector<backend::ActivationFormat> formats;
    for (std::size_t s = 0; s < block.spec().stages.size(); ++s) formats.push_back(block.linear(s).input_format());
    models::BlockState state =
        models::make_block_state(backend_, block.spec(), engine_.options_.max_num_batched_tokens, formats);
    for (std::size_t i = 0; i < engine_.sequences_.size(); ++i) {
      for_each_step(engine_.sequences_[i], engine_.hidden_[i],
                    [&](const backend::ForwardBatch& batch, Matrix<float> rows) {
                      backend_.prepare_step(batch, *cache);
                      backend_.write(rows, state.hidden);
                      block.forward({backend_, *rope_, *cache, batch, /*layer_idx=*/0}, state);
                      backend_.read(state.hidden, rows);
                    });
    }
  }

 private:
  template <class Body>
  void for_each_step(const std::vector<std::int32_t>& tokens, Tensor& hidden, const Body& body) {
    const auto num_tokens = static_cast<std::int64_t>(tokens.size());
    const std::int64_t step = engine_.options_.max_num_batched_tokens;
    for (std::int64_t first = 0; first < num_tokens; first += step) {
      const std::int64_t count = std::min(step, num_tokens - first);
      StepBatch inputs(engine_.options_.block_size);
      inputs.add(tokens, first, count, blocks_);
      body(inputs.view(), hidden.matrix<float>().block(first, count));
    }
  }

  LayerOuterEngine& engine_;
  backend::Backend& backend_;
  std::vector<std::int32_t> blocks_;         // of one sequence; every sequence overwrites them
  std::vector<models::KvScales> kv_scales_;  // of each block; empty: none
  std::unique_ptr<backend::Rope> rope_;
};

std::unique_ptr<LayerOuterEngine> LayerOuterEngine::open(const std::filesystem::path& model,
                                                         const EngineOptions& options) {
  EngineOptions on_cpu = options;
  if (on_cpu.device == "auto") on_cpu.device = "cpu";  // blocks come and go through host memory
  LoadedModel opened = open_model(model, on_cpu);
  models::ModelConfig config = models::parse_model_config(opened.checkpoint->config());
  return std::unique_ptr<LayerOuterEngine>(new LayerOuterEngine(std::move(opened), std::move(config), options));
}

LayerOuterEngine::LayerOuterEngine(LoadedModel model, models::ModelConfig config, const EngineOptions& options)
    : model_(std::move(model)), config_(std::move(config)), options_(options) {}
LayerOuterEngine::~LayerOuterEngine() = default;

void LayerOuterEngine::prefetch(std::vector<std::vector<std::int32_t>> sequences) {
  for (const auto& tokens : sequences) check_sequence(tokens);
  sequences_ = std::move(sequences);
  hidden_.clear();
  weight_bytes_ = 0;
  const models::Architecture& architecture = models::find_architecture(config_.architecture);
  Pass pass(*this);
  pass.embed();
  Progress progress("Scoring block by block", config_.num_hidden_layers, "blocks");
  for (std::int64_t b = 0; b < config_.num_hidden_layers; ++b) {
    const models::DecoderBlock block =
        models::load_block(*model_.checkpoint, architecture.block(config_, b), *model_.backend, model_.load_options);
    for (std::size_t s = 0; s < block.spec().stages.size(); ++s) weight_bytes_ += block.linear(s).size_bytes();
    pass.forward(block, static_cast<std::size_t>(b));
    progress.update(b + 1);
  }
  final_norm_ = models::load_final_norm(*model_.checkpoint, config_, *model_.backend);
  lm_head_ = models::load_lm_head(*model_.checkpoint, config_, *model_.backend);
  weight_bytes_ += lm_head_->size_bytes();
}

void LayerOuterEngine::check_sequence(const std::vector<std::int32_t>& tokens) const {
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  if (num_tokens == 0 || num_tokens > model_.max_model_len) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("{} tokens to score; the context has 1 … {}", num_tokens, model_.max_model_len));
  }
  for (const std::int32_t token : tokens) {
    if (token >= 0 && token < config_.vocab_size) continue;
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("token {} is outside the vocabulary of {}", token, config_.vocab_size));
  }
}

void LayerOuterEngine::score(const std::vector<std::int32_t>& tokens,
                             const std::function<void(const LogitTile&)>& sink) {
  std::size_t idx = 0;
  while (idx < sequences_.size() && (hidden_[idx].is_empty() || sequences_[idx] != tokens)) ++idx;
  if (idx == sequences_.size()) {
    throw Error(ErrorCode::Unsupported, "--layer-outer scores the windows of a text only: choose --tasks ppl or kl");
  }
  backend::Backend& backend = *model_.backend;
  backend::Activation hidden = backend.make_activation(kScoreTileRows, config_.hidden_size, backend.hidden_format());
  backend::Activation input = backend.make_activation(kScoreTileRows, config_.hidden_size, lm_head_->input_format());
  backend::Activation logits = backend.make_activation(kScoreTileRows, config_.vocab_size, {});
  Tensor tile = Tensor::empty(DType::F32, {kScoreTileRows, config_.vocab_size});
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  for (std::int64_t first = 0; first < num_tokens; first += kScoreTileRows) {
    const std::int64_t count = std::min(kScoreTileRows, num_tokens - first);
    backend.write(hidden_[idx].matrix<float>().block(first, count), hidden);
    backend.norm(hidden, nullptr, final_norm_, static_cast<float>(config_.rms_norm_eps), input);
    lm_head_->forward(input, logits);
    const Matrix<float> rows = tile.matrix<float>().block(0, count);
    backend.read(logits, rows);
    sink({first, rows});
  }
  hidden_[idx] = {};
}

const models::ModelConfig& LayerOuterEngine::config() const {
  return config_;
}
const tokenizer::Tokenizer& LayerOuterEngine::tokenizer() const {
  return *model_.tokenizer;
}
const Json& LayerOuterEngine::generation_config() const {
  return model_.generation_config;
}
const Json& LayerOuterEngine::tokenizer_config() const {
  return model_.tokenizer_config;
}
std::string LayerOuterEngine::chat_template_jinja() const {
  return model_.chat_template_jinja;
}
std::int64_t LayerOuterEngine::max_model_len() const {
  return model_.max_model_len;
}
std::int64_t LayerOuterEngine::weight_bytes() const {
  return weight_bytes_;
}
std::int64_t LayerOuterEngine::checkpoint_bytes() const {
  return model_.checkpoint->size_bytes();
}
std::string LayerOuterEngine::description() const {
  return model_.description + ", block by block";
}
void LayerOuterEngine::submit(Request /*request*/) {
  throw Error(ErrorCode::Unsupported, "--layer-outer scores texts and generates none: choose --tasks ppl or kl");
}
void LayerOuterEngine::cancel(const std::string& /*id*/) {}
void LayerOuterEngine::drain(double /*timeout_seconds*/) {}
EngineStats LayerOuterEngine::stats() const {
  return {};
}

}  // namespace nibble::engine
