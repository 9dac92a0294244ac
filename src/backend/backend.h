#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "weights/fp8.h"
#include "weights/linear_weights.h"

/// The operations of a forward pass at the granularity of a fused layer operation: never of a scalar loop. One
/// set for CPU, FP8 tensor cores, tensor parallelism, MoE and CUDA graphs alike. Whatever depends on lengths is
/// planned on the host in `prepare_step`; inside `run_step` nothing allocates and nothing synchronises.
namespace nibble::backend {

// ── Activations ────────────────────────────────────────────────────────────────────────────────────────────

enum class ActivationKind : std::uint8_t {
  F32,
  F16,
  BF16,
  Fp8PerToken,
  Fp8Static,
  Fp8Per128,
  Int8PerGroup,
  Int16PerGroup
};

/// What a consumer wants its input as. Stated by a `Linear`, honoured by norm, attention and silu·mul, so
/// quantizing an activation is shared by all parts of a fused linear and fused into its producer.
struct ActivationFormat {
  ActivationKind kind = ActivationKind::F32;
  std::int32_t group_size = 0;  // Int8PerGroup, Int16PerGroup: inputs that share one scale
  float static_scale = 0;       // Fp8Static
  /// Act-order: stored column j is the producer's channel input_permutation[j]. Borrowed from the Linear that
  /// states the format; empty for the natural order.
  std::span<const std::int32_t> input_permutation;
};

/// A matrix of activations in some format, with room for `capacity()` tokens; made by a backend, reused by
/// every step. Rows [0, num_tokens) are valid.
///
/// values  [capacity, width]        f32 / f16 / bf16 / e4m3 / i8 / i16, by format.kind
/// scales  f32 [capacity, groups]   Fp8PerToken: 1; Fp8Per128 and Int*PerGroup: ceil(width / group); else empty
/// sums    i32 [capacity, groups]   Int*PerGroup: sum of the group's integers, for zero points; else empty
///
/// Int16PerGroup keeps a row as two planes of int8, `width` high parts and then `width` low parts: the integer is
/// 128 * high + low, within ±16256, so that int8 dot products serve it.
struct Activation {
  ActivationFormat format;
  Tensor values;
  Tensor scales;
  Tensor sums;
  std::int64_t num_tokens = 0;

  std::int64_t capacity() const { return values.shape()[0]; }
  std::int64_t width() const { return values.shape()[1]; }
};

// ── A step ─────────────────────────────────────────────────────────────────────────────────────────────────

/// The tokens of one forward pass over several sequences, prefill and decode mixed. Sequence s owns tokens
/// [query_start[s], query_start[s+1]). All spans are host memory that stays valid and unchanged until the step
/// is collected.
///
/// tokens         i32 [num_tokens]
/// sampled_rows   i32 [num_tokens] or empty     where not negative: the token is the one that the last `sample` draws
///                                              for this row, not known yet, and tokens[t] says nothing; only for
///                                              backends with two steps in flight
/// positions      i32 [num_tokens]              index of the token in its sequence
/// query_start    i32 [num_sequences + 1]
/// context_len    i32 [num_sequences]           tokens in the KV cache once this step has written its own
/// block_table    i32 [num_sequences, block_table_stride]   KV block ids in order
/// slot_mapping   i64 [num_tokens]              block_id * block_size + offset where the token's K, V go
/// logit_rows     i32 [num_logit_rows]          token indices whose logits are wanted
struct ForwardBatch {
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> sampled_rows{};
  std::span<const std::int32_t> positions;
  std::span<const std::int32_t> query_start;
  std::span<const std::int32_t> context_len;
  std::span<const std::int32_t> block_table;
  std::int64_t block_table_stride = 0;
  std::span<const std::int64_t> slot_mapping;
  std::span<const std::int32_t> logit_rows;

  std::int64_t num_tokens() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t num_sequences() const { return static_cast<std::int64_t>(context_len.size()); }
};

/// The largest step: what a backend keeps at fixed addresses is sized for it once.
struct StepLimits {
  std::int64_t max_tokens = 0;
  std::int64_t max_sequences = 0;
  std::int64_t max_blocks_per_sequence = 0;
};

/// Decode steps of one body, recorded by a backend once per batch size and replayed from then on. Whatever the body
/// touches stays where it is as long as this lives: weights, activations, the KV cache.
class StepCapture {
 public:
  virtual ~StepCapture() = default;
  /// Numbers of sequences that are recorded, ascending; a step is padded up to the next one.
  virtual std::span<const std::int64_t> batch_sizes() const = 0;
};

// ── KV cache ───────────────────────────────────────────────────────────────────────────────────────────────

/// One layer's keys and values. k_scale, v_scale: stored = cast(k / k_scale), for 8-bit dtypes.
struct KvSpec {
  DType dtype = DType::F16;    // F32, F16, BF16, F8E4M3 or I8
  std::int32_t num_heads = 0;  // query heads that read them: a backend plans attention before the step; 0: unknown
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t sliding_window = 0;  // 0: full attention
  float k_scale = 1;
  float v_scale = 1;
};

/// Paged keys and values of all layers, owned by the backend that made it; the engine deals in block ids
/// [0, num_blocks) only.
class KvCache {
 public:
  KvCache(std::vector<KvSpec> layers, std::int64_t num_blocks, std::int32_t block_size)
      : layers_(std::move(layers)), num_blocks_(num_blocks), block_size_(block_size) {}
  virtual ~KvCache() = default;

  const KvSpec& layer(std::int64_t layer_idx) const { return layers_[static_cast<std::size_t>(layer_idx)]; }
  std::int64_t num_layers() const { return static_cast<std::int64_t>(layers_.size()); }
  std::int64_t num_blocks() const { return num_blocks_; }
  std::int32_t block_size() const { return block_size_; }

 private:
  std::vector<KvSpec> layers_;
  std::int64_t num_blocks_;
  std::int32_t block_size_;
};

/// Bytes of one block (K and V, all layers).
std::int64_t kv_block_bytes(std::span<const KvSpec> layers, std::int32_t block_size);

// ── Weights on the device ──────────────────────────────────────────────────────────────────────────────────

/// Token embedding. May borrow the checkpoint's mapped table, which then outlives it.
class Embedding {
 public:
  virtual ~Embedding() = default;
};

struct LinearSpec {
  std::string name;         // "model.layers.0.self_attn.qkv", for messages
  bool is_lm_head = false;  // a backend may store it at fewer bits than the file has, and says so once
  /// An lm_head's: the embedding that has the same table, where the model ties them. A backend with memory of its own
  /// may keep one copy; the embedding then outlives the linear.
  const Embedding* tied_to = nullptr;
};

/// One or more linears with the same input, packed for a backend. Output rows of the parts follow one another:
/// y = [part 0 | part 1 | …]. Parts that differ in bits, scheme or g_idx stay separate kernels behind it.
/// Immutable after construction; one step at a time runs it.
class Linear {
 public:
  virtual ~Linear() = default;

  std::int64_t in_features() const { return in_features_; }
  std::int64_t out_features() const { return out_features_; }
  std::int64_t size_bytes() const { return size_bytes_; }  // packed
  /// The format `forward` expects.
  const ActivationFormat& input_format() const { return input_format_; }

  /// y[num_tokens, out_features] = W x (+ bias). Sets y.num_tokens. y is F32 or the backend's own float dtype.
  virtual void forward(const Activation& x, Activation& y) const = 0;

 protected:
  std::int64_t in_features_ = 0;
  std::int64_t out_features_ = 0;
  std::int64_t size_bytes_ = 0;
  ActivationFormat input_format_;
};

/// Cosines and sines of rotary embedding.
class Rope {
 public:
  virtual ~Rope() = default;
};

/// inv_freq [head_dim / 2]: radians per position of each pair, scaling already applied. Pairs are (j, j + d/2), as
/// in Hugging Face's Llama.
struct RopeSpec {
  std::vector<float> inv_freq;
  float attention_factor = 1;  // multiplies cos and sin (YaRN)
  std::int64_t max_positions = 0;
};

struct AttentionSpec {
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_dim = 0;
  float scale = 0;  // usually 1 / sqrt(head_dim)
  std::int32_t sliding_window = 0;

  std::int64_t q_width() const { return std::int64_t{num_heads} * head_dim; }
  std::int64_t kv_width() const { return std::int64_t{num_kv_heads} * head_dim; }
};

// ── Sampling ───────────────────────────────────────────────────────────────────────────────────────────────

struct TokenCount {
  std::int32_t token = 0;
  std::int32_t in_prompt = 0;  // occurrences
  std::int32_t in_output = 0;
};

/// How to sample one row of logits; the order of operations follows vLLM: penalties and bias, then temperature, then
/// min_p, top_k, top_p. Spans stay valid until the step is collected.
struct SamplingRow {
  float temperature = 1;  // 0: greedy, the lowest id wins a tie
  float top_p = 1;
  float min_p = 0;
  std::int32_t top_k = 0;  // 0: off
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::uint64_t seed = 0;  // counter-based: the draw depends on (seed, position) alone, never on the batch
  std::uint64_t position = 0;
  std::span<const TokenCount> counts;  // for the penalties, by token
  std::span<const std::pair<std::int32_t, float>> logit_bias;
  std::span<const std::int32_t> banned;         // e.g. EOS before min_tokens
  std::span<const std::uint32_t> allowed_mask;  // bit per token; empty: all allowed
  std::int32_t num_logprobs = -1;               // -1: none; k: the sampled token's and the k best, of the raw logits
};

struct SampledToken {
  std::int32_t token = 0;
  float logprob = 0;
  bool is_finite = true;  // false: the row held a NaN; the request fails, others are unharmed
  std::vector<std::pair<std::int32_t, float>> top_logprobs;
};

// ── The backend ────────────────────────────────────────────────────────────────────────────────────────────

struct Memory {
  std::int64_t total_bytes = 0;
  std::int64_t free_bytes = 0;
  /// The device has memory of its own, of which a model takes a share (--gpu-memory-utilization); else it is the
  /// host's, where other programs need room to grow.
  bool is_devices_own = false;
  std::int64_t used_bytes = 0;  // of a device's own memory: by this process, its context included
};

enum class Precision : std::uint8_t {
  Fast,   // activations in the format the kernels like best
  Exact,  // f32 activations everywhere: evaluation oracles, calibration
};

/// What the inputs of FP8 weights become.
enum class Fp8Activations : std::uint8_t {
  Auto,     // as they are, or rounded where that is much faster: many tokens on a GPU (docs/decisions/0017)
  Float,    // they stay as they are: the most exact
  Rounded,  // always rounded to E4M3: per token, with the checkpoint's static scale, or per token and 128 inputs
};

struct BackendOptions {
  Precision precision = Precision::Fast;
  Fp8Activations fp8_activations = Fp8Activations::Auto;
  int num_threads = 0;  // 0: every available CPU
};

/// One device. Not thread-safe: one thread (the engine's, the pipeline's) calls it.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  virtual Memory memory() const = 0;
  /// Why this device can do nothing more in this process (a lost CUDA context); nothing while it works.
  virtual std::optional<std::string> fault() const { return std::nullopt; }
  /// Host threads for work beside the device's own (packing, quantizing).
  virtual ThreadPool& pool() = 0;

  // Construction. Weights may be dropped by the caller as soon as a call returns, unless stated otherwise.
  virtual std::unique_ptr<Linear> make_linear(std::vector<weights::LinearPart> parts, const LinearSpec& spec) = 0;
  /// Float weights among `parts`, which share an input, become Fp8Weights: on every backend bit for bit those of
  /// weights::quantize_fp8. A device computes them itself and may leave them in its memory, for make_linear only.
  /// Errors: Corrupt where a weight is NaN or infinite; OutOfMemory.
  virtual void quantize_to_fp8(std::vector<weights::LinearPart>& parts, weights::Fp8Granularity granularity) {
    weights::quantize_parts_to_fp8(parts, granularity, pool());
  }
  /// Keeps views of `table`'s memory where `table` borrows.
  virtual std::unique_ptr<Embedding> make_embedding(weights::DenseWeights table) = 0;
  virtual std::unique_ptr<Rope> make_rope(const RopeSpec& spec) = 0;
  /// A small vector (norm weights), as f32 on the device.
  virtual Tensor make_vector(TensorView vector) = 0;
  /// Errors: OutOfMemory.
  virtual std::unique_ptr<KvCache> make_kv_cache(std::vector<KvSpec> layers, std::int64_t num_blocks,
                                                 std::int32_t block_size) = 0;
  virtual Activation make_activation(std::int64_t capacity, std::int64_t width, const ActivationFormat& format) = 0;
  /// The dtype of hidden states and of linears' outputs: F32, or F16/BF16 on devices.
  virtual ActivationFormat hidden_format() const = 0;

  // A step: plan, run, sample, collect.
  /// For steps up to these limits, on this cache; null where the backend records nothing. Errors: OutOfMemory.
  virtual std::unique_ptr<StepCapture> make_step_capture(const StepLimits& /*limits*/, const KvCache& /*cache*/) {
    return nullptr;
  }
  /// Plans everything that depends on lengths; the operations may follow. The batch stays in place until `collect`.
  virtual void prepare_step(const ForwardBatch& batch, const KvCache& cache) = 0;
  /// Plans and executes a step: `body` calls operations on `batch` and nothing else, or what `capture` recorded of it
  /// is replayed, which leaves the num_tokens of activations as they are. Steps other than decodes (one token a
  /// sequence, as many logit rows) and those without a capture are executed one operation after the other.
  virtual void run_step(const ForwardBatch& batch, const KvCache& cache, StepCapture* /*capture*/,
                        FunctionRef<void()> body) {
    prepare_step(batch, cache);
    body();
  }

  // Operations, in the order of a forward pass. `batch` is the prepared one.
  /// hidden[t] = table[tokens[t]]
  virtual void embed(const Embedding& table, const ForwardBatch& batch, Activation& hidden) = 0;
  /// hidden += delta (where given); out = rms_norm(hidden) * weight, in out's format.
  virtual void norm(Activation& hidden, const Activation* delta, const Tensor& weight, float eps, Activation& out) = 0;
  /// hidden += delta
  virtual void add(Activation& hidden, const Activation& delta) = 0;
  /// Rotates q and k inside qkv [num_tokens, q_width + 2 kv_width] and writes k, v to their slots.
  virtual void rope_kv_write(Activation& qkv, const AttentionSpec& spec, const Rope& rope, KvCache& cache,
                             std::int64_t layer_idx, const ForwardBatch& batch) = 0;
  /// Causal attention of q against the cached context, in out's format [num_tokens, q_width].
  virtual void attention(const Activation& qkv, const AttentionSpec& spec, const KvCache& cache, std::int64_t layer_idx,
                         const ForwardBatch& batch, Activation& out) = 0;
  /// out = silu(gate) * up, of gate_up [num_tokens, 2 * width], in out's format.
  virtual void silu_mul(const Activation& gate_up, Activation& out) = 0;
  /// out = the rows of `hidden` that batch.logit_rows[first, first + count) names.
  virtual void gather_rows(const Activation& hidden, const ForwardBatch& batch, std::int64_t first, std::int64_t count,
                           Activation& out) = 0;
  /// One token for each row of logits [rows.size(), vocab_size]; `logits` may be overwritten. `out` holds the tokens
  /// after the `collect` of this call; until then `rows` and `out` stay in place.
  virtual void sample(Activation& logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) = 0;
  /// Waits for the oldest `sample` that was not collected.
  virtual void collect() {}
  /// How many steps may be launched before the first of them is collected: 1 or 2.
  virtual int max_steps_in_flight() const { return 1; }

  // Host access, for evaluation and calibration; synchronises. Float formats only.
  virtual void read(const Activation& from, Matrix<float> to) = 0;
  virtual void write(Matrix<const float> from, Activation& to) = 0;
};

/// By name: "reference" or "cpu"; "cuda" opens libnibble_cuda.so; "auto" is the CPU's best (the engine tries cuda
/// before). Errors: InvalidArgument for another name, NotFound or Unavailable with what is missing.
std::unique_ptr<Backend> make_backend(std::string_view name, const BackendOptions& options);

}  // namespace nibble::backend
