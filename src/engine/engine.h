#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/tensor.h"
#include "engine/request.h"
#include "models/config.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace nibble::engine {

struct EngineOptions {
  std::string device = "auto";  // auto: cuda where there is a GPU, else cpu | cpu | reference | cuda
  bool exact = false;           // f32 activations and KV cache
  int num_threads = 0;          // 0: every available CPU
  std::string dtype = "auto";   // auto | float16 | half | bfloat16 | float32 | float
  /// "": as the checkpoint is; fp8: a float checkpoint is quantized while it is loaded; else it must agree.
  std::string quantization;
  std::string kv_cache_dtype = "auto";  // auto: the checkpoint's, else by dtype | fp8 | fp8_e4m3 | float16 | bfloat16
  /// Inputs of FP8 weights. auto: rounded where a GPU gains much by it | float: never | fp8: always, as vLLM does
  std::string activations = "auto";
  bool gptq_act_order = false;       // accepted; warns where the checkpoint has none
  std::string load_format = "auto";  // auto | safetensors | gguf | dummy
  std::uint64_t seed = 0;
  std::int64_t max_model_len = 0;  // 0: from config.json
  std::int64_t max_num_seqs = 256;
  /// Tokens of one step. On the CPU prefill gains nothing beyond 512, while every token costs memory (30 KB for a 135M
  /// model, 200 KB for a 7B) and running streams wait for the whole step.
  std::int64_t max_num_batched_tokens = 512;
  std::int32_t block_size = 16;
  std::int64_t kv_cache_memory_bytes = 0;  // 0: a quarter of free memory on the CPU
  std::int64_t num_gpu_blocks_override = 0;
  double gpu_memory_utilization = 0.92;  // ignored on the CPU
  bool enable_prefix_caching = true;
  bool enforce_eager = false;    // decode steps are not recorded: no CUDA graphs
  bool async_scheduling = true;  // a decode step may be launched before the tokens of the one before are known
};

/// Counters for /metrics and tests; a snapshot.
struct EngineStats {
  std::int64_t num_running = 0;
  std::int64_t num_waiting = 0;
  std::int64_t num_kv_blocks = 0;
  std::int64_t num_free_kv_blocks = 0;
  std::int64_t num_preemptions = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t generation_tokens = 0;
  std::int64_t prefix_cache_queries = 0;
  std::int64_t prefix_cache_hits = 0;
};

/// Logits of consecutive positions, as `score` hands them out: row r belongs to position first_position + r and
/// predicts token first_position + r + 1. Valid during the call only.
struct LogitTile {
  std::int64_t first_position = 0;
  Matrix<const float> logits;  // [rows, vocab_size]
};

/// A loaded model that answers requests: one engine thread runs steps (continuous batching over a paged KV cache);
/// submit, cancel, stats and score may be called from any thread.
class Engine {
 public:
  /// Loads the model from a folder or GGUF file; ready when it returns.
  /// Errors: whatever the checkpoint, tokenizer or device reports.
  static std::unique_ptr<Engine> load(const std::filesystem::path& model, const EngineOptions& options);
  virtual ~Engine() = default;

  virtual const models::ModelConfig& config() const = 0;
  virtual const tokenizer::Tokenizer& tokenizer() const = 0;
  /// Contents of generation_config.json, or null.
  virtual const Json& generation_config() const = 0;
  virtual const Json& tokenizer_config() const = 0;
  virtual std::string chat_template_jinja() const = 0;  // the side file, or ""
  virtual std::int64_t max_model_len() const = 0;
  virtual std::int64_t weight_bytes() const = 0;      // packed, in memory
  virtual std::int64_t checkpoint_bytes() const = 0;  // tensors as stored on disk
  virtual std::string description() const = 0;        // "llama, 30 layers, GPTQ 4 bit group 64, cpu (AVX2), …"

  /// Queues a request; its outputs go to `request.on_output`, ending with one that has a finish_reason.
  /// Errors: InvalidArgument (empty prompt, token ids outside the vocabulary, prompt longer than the context, more KV
  /// than the pool has), Unavailable while draining.
  virtual void submit(Request request) = 0;
  /// Ends a request at the next step with FinishReason::Abort; unknown ids are ignored.
  virtual void cancel(const std::string& id) = 0;
  /// No new requests; returns when the running ones are done or `timeout_seconds` are over (the rest is aborted).
  virtual void drain(double timeout_seconds) = 0;
  virtual EngineStats stats() const = 0;
  /// Why this engine will answer nothing more: its device is lost. Running requests got FinishReason::Error, new ones
  /// are Unavailable; the process should end.
  virtual std::optional<std::string> failure() const { return std::nullopt; }
  /// Called once, on the engine's thread, when `failure` begins to say something: must be quick. Set it before the
  /// first request.
  virtual void set_on_failure(std::function<void()> /*on_failure*/) {}

  /// Full-vocabulary logits of a token sequence, tile by tile in order, from a fresh context. Blocks; runs on the
  /// engine's thread between steps. Errors: InvalidArgument as submit.
  virtual void score(const std::vector<std::int32_t>& tokens, const std::function<void(const LogitTile&)>& sink) = 0;
};

}  // namespace nibble::engine
