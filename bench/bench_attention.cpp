// Attention of one layer over the paged cache: decode (one token a sequence, long contexts) and prefill.
//   build/release/bin/bench_attention
#include <cmath>
#include <random>

#include "machine.h"
#include "step_batch.h"

namespace nibble::bench {
namespace {

struct Heads {
  const char* name;
  std::int32_t num_heads;
  std::int32_t num_kv_heads;
  std::int32_t head_dim;
};

constexpr Heads kHeads[] = {{"135m", 9, 3, 64}, {"1b", 32, 4, 64}, {"8b", 32, 8, 128}};

void attention(benchmark::State& state, Heads heads) {
  const std::int64_t num_sequences = state.range(0);
  const std::int64_t num_new = state.range(1);
  const std::int64_t context = state.range(2);
  const backend::AttentionSpec spec{.num_heads = heads.num_heads,
                                    .num_kv_heads = heads.num_kv_heads,
                                    .head_dim = heads.head_dim,
                                    .scale = 1.0f / std::sqrt(static_cast<float>(heads.head_dim))};
  const auto backend = backend::make_backend("cpu", {.num_threads = num_threads()});
  const auto rope = backend->make_rope(
      {.inv_freq = std::vector<float>(static_cast<std::size_t>(heads.head_dim / 2), 0.01f), .max_positions = 32768});
  const StepBatch history(num_sequences, context + num_new, 0);
  const StepBatch step(num_sequences, num_new, context);
  const auto cache =
      backend->make_kv_cache({{.dtype = DType::F16, .num_kv_heads = heads.num_kv_heads, .head_dim = heads.head_dim}},
                             history.num_blocks(), StepBatch::kBlockSize);
  const std::int64_t width = spec.q_width() + 2 * spec.kv_width();
  const auto fill = [&](const backend::ForwardBatch& batch) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    auto qkv = backend->make_activation(batch.num_tokens(), width, {});
    for (float& value : qkv.values.span<float>()) value = normal(random);
    qkv.num_tokens = batch.num_tokens();
    backend->rope_kv_write(qkv, spec, *rope, *cache, 0, batch);
    return qkv;
  };
  fill(history.batch());
  const backend::ForwardBatch batch = step.batch();
  const auto qkv = fill(batch);
  auto out = backend->make_activation(batch.num_tokens(), spec.q_width(), {});
  backend->prepare_step(batch, *cache);
  for (auto _ : state) {
    backend->attention(qkv, spec, *cache, 0, batch, out);
    benchmark::ClobberMemory();
  }
  const double keys =
      static_cast<double>(num_sequences) * (static_cast<double>(num_new) * static_cast<double>(context) +
                                            static_cast<double>(num_new) * static_cast<double>(num_new + 1) / 2);
  report(state, backend->pool(), keys * 4 * static_cast<double>(spec.q_width()),
         static_cast<double>(num_sequences * (context + num_new) * spec.kv_width()) * 4);
}

void register_all() {
  for (const Heads& heads : kHeads) {
    benchmark::RegisterBenchmark(heads.name, attention, heads)
        ->ArgNames({"sequences", "new", "context"})
        ->Args({1, 1, 512})
        ->Args({1, 1, 8192})
        ->Args({16, 1, 1024})
        ->Args({1, 512, 0})
        ->Args({1, 512, 4096})
        ->Unit(benchmark::kMicrosecond)
        ->UseRealTime()
        ->MinTime(0.2);
  }
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  nibble::bench::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
