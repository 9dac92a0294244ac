// Attention of one layer on the GPU, as AttentionPlan runs it in a captured step: decode over a random cache, with the
// time that a plain read of the same keys and values takes beside it, and prefill: FA3, FA2 and the plain kernel.
// Layers are taken in turn, so that their caches do not stay in the second-level cache.
//   build/cuda/bin/bench_cuda_attention [decode|prefill|rope]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/device.h"
#include "backend/cuda/element.cuh"
#include "backend/cuda/handles.h"

namespace nibble::backend::cuda {
namespace {

constexpr std::int32_t kBlockSize = 16;
constexpr int kRuns = 48;  // operations in a graph

struct Model {
  const char* name;
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;

  AttentionSpec spec() const {
    return {num_heads, num_kv_heads, head_dim, 1.0F / std::sqrt(static_cast<float>(head_dim)), 0};
  }
};
constexpr Model kModels[] = {{"llama-2-7b", 32, 32, 128}, {"llama-2-70b", 64, 8, 128}};

__global__ void fill_kernel(__half* values, std::int64_t count, std::uint32_t seed) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 2654435761U + seed;
    x = (x ^ (x >> 15)) * 2246822519U;
    x ^= x >> 13;
    values[i] = __float2half(static_cast<float>(x % 4096) / 2048 - 1);
  }
}
/// Bytes whose exponent is never that of a NaN.
__global__ void fill_bytes_kernel(std::uint8_t* values, std::int64_t count) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count;
       i += std::int64_t{gridDim.x} * blockDim.x) {
    values[i] = static_cast<std::uint8_t>((static_cast<std::uint32_t>(i) * 2654435761U >> 13) & 0xBF);
  }
}

/// The fastest plain read: every thread sums vectors, eight loads in flight.
__global__ void __launch_bounds__(512) read_kernel(const uint4* values, std::int64_t count, std::uint32_t* out) {
  std::uint32_t sum = 0;
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 loaded[8];
    for (int k = 0; k < 8; ++k) loaded[k] = __ldcs(values + i + k * step);
    for (int k = 0; k < 8; ++k) sum += loaded[k].x ^ loaded[k].y ^ loaded[k].z ^ loaded[k].w;
  }
  for (; i < count; i += step) sum += values[i].x;
  if (sum == 0x12345678) *out = sum;  // never: keeps the loads
}

Activation make_f16(std::int64_t rows, std::int64_t width, std::uint32_t seed, cudaStream_t stream) {
  Activation made;
  made.format.kind = ActivationKind::F16;
  made.values = Tensor(device_buffer(static_cast<std::size_t>(rows * width) * 2), DType::F16, {rows, width});
  made.num_tokens = rows;
  fill_kernel<<<512, 256, 0, stream>>>(device_data<__half>(made), rows * width, seed);
  return made;
}

/// Microseconds of one of `kRuns` operations in a graph, the best of several replays.
double time_in_graph(cudaStream_t stream, const std::function<void(int)>& run, int runs = kRuns) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < runs; ++i) run(i);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  float best = 1e30F;
  for (int repeat = 0; repeat < 4; ++repeat) {
    check(cudaEventRecord(begin, stream));
    check(cudaGraphLaunch(executable, stream));
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end));
    if (repeat > 0) best = std::min(best, ms);
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  return 1e3 * best / runs;
}

/// Sequences of equal lengths, their cache and q of the step.
class Step {
 public:
  /// num_heads of the cache 0: the plain kernel.
  Step(const Model& model, DType dtype, std::int64_t num_sequences, std::int64_t num_new, std::int64_t context,
       bool is_plain = false)
      : spec_(model.spec()), stream_(make_stream()), num_sequences_(num_sequences), num_new_(num_new) {
    const std::int64_t blocks = (context + kBlockSize - 1) / kBlockSize;
    layer_bytes_ = num_sequences * blocks * kBlockSize * spec_.kv_width() * 2 *
                   static_cast<std::int64_t>(nibble::size_bytes(dtype));
    num_layers_ = std::clamp<std::int64_t>((std::int64_t{400} << 20) / layer_bytes_, 1, kRuns);
    KvSpec kv{.dtype = dtype,
              .num_heads = spec_.num_heads,
              .num_kv_heads = spec_.num_kv_heads,
              .head_dim = spec_.head_dim,
              .sliding_window = 0,
              .k_scale = 0.01F,
              .v_scale = 0.01F};
    if (is_plain) kv.num_heads = 0;
    cache_ = std::make_unique<CudaKvCache>(std::vector<KvSpec>(static_cast<std::size_t>(num_layers_), kv),
                                           num_sequences * blocks, kBlockSize);
    for (std::int64_t l = 0; l < num_layers_; ++l) {
      for (std::byte* values : {cache_->keys(l), cache_->values(l)}) {
        if (dtype == DType::F16) {
          fill_kernel<<<1024, 256, 0, stream_.get()>>>(reinterpret_cast<__half*>(values), layer_bytes_ / 4, 7);
        } else {
          fill_bytes_kernel<<<1024, 256, 0, stream_.get()>>>(reinterpret_cast<std::uint8_t*>(values), layer_bytes_ / 2);
        }
      }
    }
    const std::int64_t num_tokens = num_sequences * num_new;
    qkv_ = make_f16(num_tokens, spec_.q_width() + 2 * spec_.kv_width(), 3, stream_.get());
    out_ = make_f16(num_tokens, spec_.q_width(), 4, stream_.get());
    cos_ = make_table(context + 1);
    for (std::int64_t s = 0; s < num_sequences; ++s) {
      for (std::int64_t p = context - num_new; p < context; ++p) {
        positions_.push_back(static_cast<std::int32_t>(p));
        slots_.push_back((s * blocks + p / kBlockSize) * kBlockSize + p % kBlockSize);
      }
      query_start_.push_back(static_cast<std::int32_t>(positions_.size()));
      context_len_.push_back(static_cast<std::int32_t>(context));
    }
    table_.resize(static_cast<std::size_t>(num_sequences * blocks));
    std::iota(table_.begin(), table_.end(), 0);
    const ForwardBatch batch{.tokens = positions_,
                             .positions = positions_,
                             .query_start = query_start_,
                             .context_len = context_len_,
                             .block_table = table_,
                             .block_table_stride = blocks,
                             .slot_mapping = slots_,
                             .logit_rows = {}};
    inputs_.upload(batch, stream_.get());
    plan_.plan(batch, *cache_, stream_.get());
    check(cudaStreamSynchronize(stream_.get()));
  }

  void attend(int i) { attention(qkv_, spec_, *cache_, i % num_layers_, inputs_.batch(), plan_, out_, stream_.get()); }
  void rotate(int i) {
    rope_kv_write(qkv_, spec_, cos_, cos_, *cache_, i % num_layers_, inputs_.batch(), stream_.get());
  }
  void read(int i) {
    // Keys and values of a layer follow one another, but for the padding between them.
    read_kernel<<<132 * 4, 512, 0, stream_.get()>>>(reinterpret_cast<const uint4*>(cache_->keys(i % num_layers_)),
                                                    layer_bytes_ / 16, nullptr);
  }
  /// The FA2 kernel for long queries, whatever the plan would take.
  void plan_fa2() {
    std::vector<SequenceLengths> lengths;
    for (std::int32_t s = 0; s < num_sequences_; ++s) {
      lengths.push_back({s, query_start_[static_cast<std::size_t>(s)], static_cast<std::int32_t>(num_new_),
                         context_len_[static_cast<std::size_t>(s)]});
    }
    const std::int32_t rows = prefill_tile_rows(spec_.head_dim);
    schedule_fa2(lengths, {spec_.num_heads, spec_.num_kv_heads, 0},
                 {.tile_rows = rows,
                  .block_size = kBlockSize,
                  .num_slots = 132,
                  .min_chunk_len = 1 << 20,
                  .always_split = false,
                  .num_sequences = static_cast<std::int32_t>(num_sequences_)},
                 fa2_);
    std::vector<std::int32_t> all;
    const auto add = [&](const std::vector<std::int32_t>& values) {
      all.insert(all.end(), values.begin(), values.end());
      return all.size() - values.size();
    };
    std::vector<std::int32_t> starts;
    const auto stride = static_cast<std::int32_t>(table_.size()) / static_cast<std::int32_t>(num_sequences_);
    for (std::int32_t s = 0; s <= num_sequences_; ++s) starts.push_back(s * stride);
    const std::size_t places[] = {add(fa2_.sequence), add(fa2_.q_tile),  add(fa2_.kv_chunk), add({fa2_.chunk_len}),
                                  add(starts),        add(query_start_), add(context_len_)};
    lists_ = device_buffer(all.size() * 4);
    check(cudaMemcpy(lists_.data(), all.data(), all.size() * 4, cudaMemcpyHostToDevice));
    const auto* list = static_cast<const std::int32_t*>(lists_.data());
    work_ = {.tile_rows = rows,
             .num_tiles = fa2_.num_tiles(),
             .sequence = list + places[0],
             .q_tile = list + places[1],
             .kv_chunk = list + places[2],
             .is_used = nullptr,
             .chunk_len = list + places[3]};
    paged_ = {.q = qkv_.values.view().data(),
              .q_stride = qkv_.width(),
              .keys = nullptr,
              .values = nullptr,
              .out = out_.values.mutable_view().data(),
              .num_heads = spec_.num_heads,
              .num_kv_heads = spec_.num_kv_heads,
              .head_dim = spec_.head_dim,
              .kv_dtype = cache_->layer(0).dtype,
              .block_size = kBlockSize,
              .sliding_window = 0,
              .scale = spec_.scale,
              .v_scale = 1,
              .num_tokens = qkv_.num_tokens,
              .num_sequences = static_cast<std::int32_t>(num_sequences_),
              .block_table = inputs_.batch().block_table,
              .table_start = list + places[4],
              .query_start = list + places[5],
              .context_len = list + places[6]};
  }
  void attend_fa2(int i) {
    paged_.keys = cache_->keys(i % num_layers_);
    paged_.values = cache_->values(i % num_layers_);
    run_fa2(paged_, work_, stream_.get());
  }
  cudaStream_t stream() const { return stream_.get(); }
  double layer_bytes() const { return static_cast<double>(layer_bytes_); }

 private:
  Tensor make_table(std::int64_t rows) const {
    Tensor table = Tensor::empty(DType::F32, {rows, spec_.head_dim / 2});
    for (float& value : table.span<float>()) value = 0.7F;
    return to_device(table.view(), stream_.get());
  }

  AttentionSpec spec_;
  Stream stream_;
  std::int64_t num_sequences_;
  std::int64_t num_new_;
  std::int64_t layer_bytes_ = 0;
  std::int64_t num_layers_ = 1;
  std::unique_ptr<CudaKvCache> cache_;
  StepInputs inputs_;
  AttentionPlan plan_;
  Activation qkv_, out_;
  Tensor cos_;
  std::vector<std::int32_t> positions_, query_start_{0}, context_len_, table_;
  std::vector<std::int64_t> slots_;
  Fa2Schedule fa2_;
  Buffer lists_;
  Fa2Work work_;
  PagedAttention paged_;
};

void decode() {
  std::printf("%-12s %-5s %5s %7s %10s %8s %10s %8s %6s %10s\n", "model", "cache", "batch", "context", "us", "GB/s",
              "read us", "GB/s", "share", "with rope");
  for (const Model& model : kModels) {
    for (const DType dtype : {DType::F16, DType::F8E4M3}) {
      for (const std::int64_t batch : {1, 8, 32, 64, 256}) {
        for (const std::int64_t context : {512, 4096}) {
          Step step(model, dtype, batch, 1, context);
          const int runs = std::clamp(static_cast<int>(2e10 / step.layer_bytes()), 4, kRuns);
          const double us = time_in_graph(step.stream(), [&](int i) { step.attend(i); }, runs);
          const double read_us = time_in_graph(step.stream(), [&](int i) { step.read(i); }, runs);
          const auto rotate_and_attend = [&](int i) {
            step.rotate(i);
            step.attend(i);
          };
          const double both_us = time_in_graph(step.stream(), rotate_and_attend, runs);
          const double gb = step.layer_bytes() * 1e-9;
          std::printf("%-12s %-5s %5d %7d %10.2f %8.0f %10.2f %8.0f %5.0f%% %10.2f\n", model.name,
                      dtype == DType::F16 ? "f16" : "fp8", static_cast<int>(batch), static_cast<int>(context), us,
                      gb / us * 1e6, read_us, gb / read_us * 1e6, 100 * read_us / us, both_us);
          std::fflush(stdout);
        }
      }
    }
  }
}

void prefill() {
  std::printf("%-12s %9s %6s %10s %8s %10s %8s %10s %8s %10s %8s\n", "model", "sequences", "tokens", "plan us",
              "TFLOP/s", "FA2 us", "TFLOP/s", "plain us", "TFLOP/s", "fp8 us", "TFLOP/s");
  for (const Model& model : kModels) {
    for (const auto& [sequences, tokens] : {std::pair{1, 4096}, {4, 1024}, {1, 512}, {8, 128}}) {
      Step step(model, DType::F16, sequences, tokens, tokens);
      step.plan_fa2();
      const double flops = 2.0 * sequences * tokens * (tokens + 1.0) * model.num_heads * model.head_dim;
      const double us = time_in_graph(step.stream(), [&](int i) { step.attend(i); }, 8);
      const double fa2_us = time_in_graph(step.stream(), [&](int i) { step.attend_fa2(i); }, 8);
      Step plain(model, DType::F16, sequences, tokens, tokens, true);
      const double plain_us = time_in_graph(plain.stream(), [&](int i) { plain.attend(i); }, 1);
      Step fp8(model, DType::F8E4M3, sequences, tokens, tokens);
      const double fp8_us = time_in_graph(fp8.stream(), [&](int i) { fp8.attend(i); }, 8);
      std::printf("%-12s %9d %6d %10.1f %8.0f %10.1f %8.0f %10.1f %8.1f %10.1f %8.0f\n", model.name, sequences, tokens,
                  us, flops / us * 1e-6, fa2_us, flops / fa2_us * 1e-6, plain_us, flops / plain_us * 1e-6, fp8_us,
                  flops / fp8_us * 1e-6);
      std::fflush(stdout);
    }
  }
}

void rope() {
  std::printf("%-12s %6s %10s %8s\n", "model", "tokens", "rope us", "GB/s");
  for (const Model& model : kModels) {
    for (const std::int64_t tokens : {1, 8, 64, 256, 4096}) {
      Step step(model, DType::F16, tokens, 1, 16);
      const double us = time_in_graph(step.stream(), [&](int i) { step.rotate(i); });
      const double bytes =
          4.0 * static_cast<double>(tokens) * model.head_dim * (model.num_heads + 2.5 * model.num_kv_heads);
      std::printf("%-12s %6d %10.2f %8.0f\n", model.name, static_cast<int>(tokens), us, bytes / us * 1e-3);
    }
  }
}

}  // namespace
}  // namespace nibble::backend::cuda

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  try {
    if (what.empty() || what == "rope") nibble::backend::cuda::rope();
    if (what.empty() || what == "decode") nibble::backend::cuda::decode();
    if (what.empty() || what == "prefill") nibble::backend::cuda::prefill();
  } catch (const nibble::Error& error) {
    std::fprintf(stderr, "bench_cuda_attention: %s\n", error.what());
    return 1;
  }
  return 0;
}
