#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/loaded_model.h"

namespace nibble::engine {

/// Scores sequences with a model that need not fit into memory: all of them go through one block after the other, so
/// that one block's weights are there at a time. In memory are that block and the residual stream of all tokens
/// (f32). Logits are bitwise those of Engine::load.
///
/// It only scores, and only what `prefetch` was given: requests are Unsupported. One thread at a time calls it.
class LayerOuterEngine final : public Engine {
 public:
  /// Errors: as Engine::load.
  static std::unique_ptr<LayerOuterEngine> open(const std::filesystem::path& model, const EngineOptions& options);
  ~LayerOuterEngine() override;

  /// Runs the sequences, each from a fresh context, through all blocks; `score` then gives the logits of each, once.
  /// Errors: InvalidArgument for a token id outside the vocabulary or a sequence longer than the context; whatever the
  /// checkpoint reports.
  void prefetch(std::vector<std::vector<std::int32_t>> sequences);

  const models::ModelConfig& config() const override;
  const tokenizer::Tokenizer& tokenizer() const override;
  const Json& generation_config() const override;
  const Json& tokenizer_config() const override;
  std::string chat_template_jinja() const override;
  std::int64_t max_model_len() const override;
  std::int64_t weight_bytes() const override;  // of all blocks together, once they have passed
  std::int64_t checkpoint_bytes() const override;
  std::string description() const override;

  void submit(Request request) override;
  void cancel(const std::string& id) override;
  void drain(double timeout_seconds) override;
  EngineStats stats() const override;
  /// Errors: Unsupported for a sequence that was not prefetched, or was scored already.
  void score(const std::vector<std::int32_t>& tokens, const std::function<void(const LogitTile&)>& sink) override;

 private:
  class Pass;
  LayerOuterEngine(LoadedModel model, models::ModelConfig config, const EngineOptions& options);
  void check_sequence(const std::vector<std::int32_t>& tokens) const;

  LoadedModel model_;  // without decoder and cache
  models::ModelConfig config_;
  EngineOptions options_;
  std::vector<std::vector<std::int32_t>> sequences_;
  std::vector<Tensor> hidden_;  // of each sequence, f32 [tokens, hidden_size]; empty once scored
  Tensor final_norm_;
  std::unique_ptr<backend::Linear> lm_head_;
  std::int64_t weight_bytes_ = 0;
};

}  // namespace nibble::engine
