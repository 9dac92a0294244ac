#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/attention_plan.h"
#include "backend/cuda/cublas_lt.h"
#include "backend/cuda/cuda_linear.h"
#include "backend/cuda/device.h"
#include "backend/cuda/fp8_rounding.h"
#include "backend/cuda/handles.h"
#include "backend/cuda/kv_cache.h"
#include "backend/cuda/norm.h"
#include "backend/cuda/rows.h"
#include "backend/cuda/sampler.h"
#include "backend/cuda/step_graphs.h"
#include "backend/cuda/step_inputs.h"
#include "backend/cuda/uploader.h"
#include "backend/host_ops.h"

namespace nibble::backend::cuda {
namespace {

class CudaEmbedding final : public Embedding {
 public:
  explicit CudaEmbedding(Tensor on_device) : table(std::move(on_device)) {}
  Tensor table;  // [vocab_size, hidden_size] in a float dtype
};

/// f32 [max_positions, head_dim / 2] each.
class CudaRope final : public Rope {
 public:
  CudaRope(const RopeSpec& spec, cudaStream_t stream) {
    const HostRope host(spec);
    const auto pairs = static_cast<std::int64_t>(spec.inv_freq.size());
    Tensor table = Tensor::empty(DType::F32, {spec.max_positions, pairs});
    for (std::int64_t p = 0; p < spec.max_positions; ++p) std::ranges::copy(host.cos(p), table.matrix<float>().row(p));
    cos = to_device(table, stream);
    for (std::int64_t p = 0; p < spec.max_positions; ++p) std::ranges::copy(host.sin(p), table.matrix<float>().row(p));
    sin = to_device(table, stream);
  }
  Tensor cos;
  Tensor sin;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options)
      : pool_(options.num_threads),
        stream_(make_stream()),
        format_(options.precision == Precision::Exact ? ActivationKind::F32 : ActivationKind::F16),
        fp8_activations_(options.fp8_activations) {}

  std::string_view name() const override { return "cuda"; }
  Memory memory() const override { return memory_share(device_memory(), used_at_start_); }
  std::optional<std::string> fault() const override { return device_fault(); }
  ThreadPool& pool() override { return pool_; }

  std::unique_ptr<Linear> make_linear(std::vector<weights::LinearPart> parts, const LinearSpec& spec) override {
    if (spec.tied_to != nullptr) share_table(*static_cast<const CudaEmbedding*>(spec.tied_to), parts.front());
    try {
      uploader_.upload(parts, values_dtype(format_));
    } catch (const Error& error) {
      throw error.in(spec.name);
    }
    return make_cuda_linear(parts, spec,
                            {.format = format_,
                             .fp8_activations = fp8_activations_,
                             .cublas = cublas_,
                             .fp8 = fp8_,
                             .scratch = scratch_,
                             .stream = stream_.get()});
  }
  void quantize_to_fp8(std::vector<weights::LinearPart>& parts, weights::Fp8Granularity granularity) override {
    quantize_parts_to_fp8(parts, granularity, uploader_);
  }
  std::unique_ptr<Embedding> make_embedding(weights::DenseWeights table) override {
    // In the dtype of a tied lm_head where that costs no memory.
    const DType dtype = format_ == ActivationKind::F16 ? DType::F16 : table.weight.dtype();
    return std::make_unique<CudaEmbedding>(uploader_.upload_as(table.weight, dtype));
  }
  std::unique_ptr<Rope> make_rope(const RopeSpec& spec) override {
    return std::make_unique<CudaRope>(spec, stream_.get());
  }
  Tensor make_vector(TensorView vector) override { return to_device(to_dtype(vector, DType::F32), stream_.get()); }
  std::unique_ptr<KvCache> make_kv_cache(std::vector<KvSpec> layers, std::int64_t num_blocks,
                                         std::int32_t block_size) override {
    return std::make_unique<CudaKvCache>(std::move(layers), num_blocks, block_size);
  }
  Activation make_activation(std::int64_t capacity, std::int64_t width, const ActivationFormat& format) override {
    nibble::check(format.kind == ActivationKind::F32 || format.kind == ActivationKind::F16,
                  "cuda: activations are f32 or f16");
    const DType dtype = values_dtype(format.kind);
    Activation activation;
    activation.format = format;
    activation.values =
        Tensor(device_buffer(static_cast<std::size_t>(capacity * width) * size_bytes(dtype)), dtype, {capacity, width});
    return activation;
  }
  ActivationFormat hidden_format() const override { return {.kind = format_}; }

  std::unique_ptr<StepCapture> make_step_capture(const StepLimits& limits, const KvCache& cache) override {
    inputs_.reserve(limits);
    if (format_ == ActivationKind::F16) attention_plan_.reserve(limits, cache);
    return std::make_unique<StepGraphs>(limits, cache);
  }
  void prepare_step(const ForwardBatch& batch, const KvCache& cache) override {
    inputs_.upload(batch, stream_.get());
    finish_preparation(cache);
  }
  void run_step(const ForwardBatch& batch, const KvCache& cache, StepCapture* capture,
                FunctionRef<void()> body) override {
    auto* graphs = static_cast<StepGraphs*>(capture);
    const std::int64_t size = graphs == nullptr ? 0 : graphs->padded_size(batch.num_sequences());
    if (size == 0 || batch.block_table_stride > graphs->max_blocks_per_sequence()) {
      prepare_step(batch, cache);
      body();
      return;
    }
    nibble::check(&cache == &graphs->cache() && batch.num_tokens() == batch.num_sequences() &&
                      batch.logit_rows.size() == batch.tokens.size(),
                  "cuda graphs: decodes on the cache that they were recorded for");
    inputs_.upload_padded(batch, size, graphs->max_blocks_per_sequence(), stream_.get());
    finish_preparation(cache);
    graphs->run(size, inputs_.generation() + attention_plan_.generation(), stream_.get(), body);
  }

  void embed(const Embedding& table, const ForwardBatch& batch, Activation& hidden) override {
    expect_prepared(batch);
    cuda::embed(static_cast<const CudaEmbedding&>(table).table, inputs_.batch().tokens, inputs_.batch().num_tokens,
                hidden, stream_.get());
  }
  void norm(Activation& hidden, const Activation* delta, const Tensor& weight, float eps, Activation& out) override {
    cuda::norm(hidden, delta, weight, eps, out, stream_.get());
  }
  void add(Activation& hidden, const Activation& delta) override { cuda::add(hidden, delta, stream_.get()); }
  void rope_kv_write(Activation& qkv, const AttentionSpec& spec, const Rope& rope, KvCache& cache,
                     std::int64_t layer_idx, const ForwardBatch& batch) override {
    expect_prepared(batch);
    const auto& tables = static_cast<const CudaRope&>(rope);
    cuda::rope_kv_write(qkv, spec, tables.cos, tables.sin, static_cast<CudaKvCache&>(cache), layer_idx, inputs_.batch(),
                        stream_.get());
  }
  void attention(const Activation& qkv, const AttentionSpec& spec, const KvCache& cache, std::int64_t layer_idx,
                 const ForwardBatch& batch, Activation& out) override {
    expect_prepared(batch);
    cuda::attention(qkv, spec, static_cast<const CudaKvCache&>(cache), layer_idx, inputs_.batch(), attention_plan_, out,
                    stream_.get());
  }
  void silu_mul(const Activation& gate_up, Activation& out) override { cuda::silu_mul(gate_up, out, stream_.get()); }

  void gather_rows(const Activation& hidden, const ForwardBatch& batch, std::int64_t first, std::int64_t count,
                   Activation& out) override {
    expect_prepared(batch);
    const auto num_given = static_cast<std::int64_t>(batch.logit_rows.size());
    nibble::check(first + count <= num_given, "cuda gather_rows: beyond the batch's logit rows");
    // Padding has logit rows as well, behind the others.
    const std::int64_t num_padding = inputs_.batch().num_logit_rows - num_given;
    cuda::gather_rows(hidden, inputs_.batch().logit_rows + first, count + num_padding, out, stream_.get());
  }

  void sample(Activation& logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) override {
    sampler_.launch(logits, rows, out);
  }
  void collect() override { sampler_.collect(); }
  int max_steps_in_flight() const override { return 2; }

  void read(const Activation& from, Matrix<float> to) override {
    Activation host;
    host.format = from.format;
    host.values = to_host(from.values.view().rows(0, from.num_tokens), stream_.get());
    host.num_tokens = from.num_tokens;
    read_host_activation(host, to);
  }
  void write(Matrix<const float> from, Activation& to) override {
    Activation host = make_host_activation(from.rows, to.width(), to.format);
    write_host_activation(from, host);
    nibble::check(to.capacity() >= from.rows, "cuda write: more rows than the activation holds");
    check(cudaMemcpyAsync(to.values.mutable_view().data(), host.values.view().data(), host.values.size_bytes(),
                          cudaMemcpyHostToDevice, stream_.get()));
    check(cudaStreamSynchronize(stream_.get()));
    to.num_tokens = from.rows;
  }

 private:
  /// A tied lm_head's weights are the embedding's table where both have the dtype that products want.
  void share_table(const CudaEmbedding& embedding, weights::LinearPart& part) const {
    if (embedding.table.dtype() == values_dtype(format_))
      part.weights = weights::DenseWeights{Tensor::borrow(embedding.table)};
  }

  /// The uploaded batch, padding included: tokens that only the device knows, and attention's plan.
  void finish_preparation(const KvCache& cache) {
    const DeviceBatch& batch = inputs_.batch();
    if (batch.sampled_rows != nullptr) {
      nibble::check(sampler_.last_tokens() != nullptr, "cuda: sampled_rows before anything was sampled");
      take_sampled_tokens(sampler_.last_tokens(), batch.sampled_rows, batch.num_tokens, batch.tokens, stream_.get());
    }
    if (format_ == ActivationKind::F16) attention_plan_.plan(inputs_.host_batch(), cache, stream_.get());
  }

  void expect_prepared(const ForwardBatch& batch) const {
    nibble::check(batch.num_tokens() == inputs_.num_real_tokens(), "cuda: the batch is not the prepared one");
  }

  ThreadPool pool_;
  std::int64_t used_at_start_ = device_memory().used_bytes;
  Stream stream_;
  Uploader uploader_{pool_, stream_.get()};
  ActivationKind format_;
  Fp8Activations fp8_activations_;
  CublasLt cublas_;
  Fp8Matmul fp8_{cublas_};
  Scratch scratch_;  // of the linears
  StepInputs inputs_;
  AttentionPlan attention_plan_;
  Sampler sampler_{stream_.get()};
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace nibble::backend::cuda
