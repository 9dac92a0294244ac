// One linear of the CPU backend: y[M, N] = x[M, K] W[N, K]^T, by kind of weights, shape and M.
//   build/release/bin/bench_linear --benchmark_filter='Int4G128/1b'
#include <random>

#include "machine.h"
#include "weights/fp8.h"
#include "weights/linear_weights.h"

namespace nibble::bench {
namespace {

enum class Kind : std::uint8_t {
  F16,
  Fp8Channel,
  Fp8Block,
  Int8G128,
  Int4G128,
  Int4G64,
  Int3G128,
  Int2G128,
  Codebook4,
  Codebook4Sparse,
  Codebook3
};

struct LinearShape {
  const char* name;
  std::int64_t out_features;
  std::int64_t in_features;
};

constexpr LinearShape kShapes[] = {
    {"135m_down", 576, 1536}, {"1b_gate_up", 11264, 2048}, {"1b_down", 2048, 5632}, {"8b_gate_up", 28672, 4096}};

/// Random codes; 0.45 % of the weights sparse where asked for.
weights::CodebookWeights make_codebook(Kind kind, const LinearShape& shape, std::mt19937& random) {
  weights::CodebookWeights w;
  w.out_features = shape.out_features;
  w.in_features = shape.in_features;
  w.bits = kind == Kind::Codebook3 ? 3 : 4;
  w.codes = Tensor::empty(DType::U8, {w.out_features, weights::packed_row_bytes(w.in_features, w.bits)});
  for (std::uint8_t& byte : w.codes.span<std::uint8_t>()) byte = static_cast<std::uint8_t>(random());
  w.lookup_table = Tensor::empty(DType::F16, {w.out_features, std::int64_t{1} << w.bits});
  for (Half& entry : w.lookup_table.span<Half>()) entry.bits = static_cast<std::uint16_t>((random() & 0x83ff) | 0x2400);
  if (kind != Kind::Codebook4Sparse) return w;
  const std::int64_t per_row = w.in_features * 45 / 10000;
  w.rows = Tensor::empty(DType::I32, {w.out_features + 1});
  w.cols = Tensor::empty(DType::I32, {w.out_features * per_row});
  w.vals = Tensor::zeros(DType::F32, {w.out_features * per_row});
  for (std::int64_t o = 0; o <= w.out_features; ++o) {
    w.rows.span<std::int32_t>()[static_cast<std::size_t>(o)] = static_cast<std::int32_t>(o * per_row);
  }
  for (std::int32_t& col : w.cols.span<std::int32_t>()) {
    col = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(w.in_features));
  }
  return w;
}

weights::LinearWeights make_weights(Kind kind, const LinearShape& shape) {
  std::mt19937 random(1);
  if (kind == Kind::F16 || kind == Kind::Fp8Channel || kind == Kind::Fp8Block) {
    Tensor weight = Tensor::empty(DType::F16, {shape.out_features, shape.in_features});
    for (Half& value : weight.span<Half>()) value.bits = static_cast<std::uint16_t>((random() & 0x83ff) | 0x2400);
    if (kind == Kind::F16) return weights::DenseWeights{std::move(weight)};
    const TensorView view = weight;
    ThreadPool pool(num_threads());
    return std::move(weights::quantize_fp8({&view, 1},
                                           kind == Kind::Fp8Block ? weights::Fp8Granularity::PerBlock
                                                                  : weights::Fp8Granularity::PerChannel,
                                           pool)
                         .front());
  }
  if (kind == Kind::Codebook4 || kind == Kind::Codebook4Sparse || kind == Kind::Codebook3) {
    return make_codebook(kind, shape, random);
  }
  weights::GroupedIntWeights w;
  w.out_features = shape.out_features;
  w.in_features = shape.in_features;
  w.bits = kind == Kind::Int8G128 ? 8 : kind == Kind::Int3G128 ? 3 : kind == Kind::Int2G128 ? 2 : 4;
  w.group_size = kind == Kind::Int4G64 ? 64 : 128;
  w.codes = Tensor::empty(DType::U8, {w.out_features, weights::packed_row_bytes(w.in_features, w.bits)});
  for (std::uint8_t& byte : w.codes.span<std::uint8_t>()) byte = static_cast<std::uint8_t>(random());
  w.scales = Tensor::empty(DType::F16, {w.out_features, w.in_features / w.group_size});
  for (Half& scale : w.scales.span<Half>()) scale = to_half(0.01f);
  w.zeros = Tensor::empty(DType::I16, {w.out_features, w.in_features / w.group_size});
  for (std::int16_t& zero : w.zeros.span<std::int16_t>()) zero = static_cast<std::int16_t>(random() % (1u << w.bits));
  return w;
}

void linear(benchmark::State& state, Kind kind, LinearShape shape) {
  const std::int64_t num_tokens = state.range(0);
  const auto backend = backend::make_backend("cpu", {.num_threads = num_threads()});
  std::vector<weights::LinearPart> parts(1);
  parts[0].weights = make_weights(kind, shape);
  const auto linear = backend->make_linear(std::move(parts), {.name = "bench"});
  const std::vector<float> values(static_cast<std::size_t>(num_tokens * shape.in_features), 0.5f);
  const std::vector<float> ones(static_cast<std::size_t>(shape.in_features), 1.0f);
  auto hidden = backend->make_activation(num_tokens, shape.in_features, {});
  backend->write({values.data(), num_tokens, shape.in_features, shape.in_features}, hidden);
  auto input = backend->make_activation(num_tokens, shape.in_features, linear->input_format());
  backend->norm(hidden, nullptr, backend->make_vector(TensorView(ones.data(), DType::F32, {shape.in_features})), 1e-5f,
                input);
  auto output = backend->make_activation(num_tokens, shape.out_features, {});
  for (auto _ : state) {
    linear->forward(input, output);
    benchmark::ClobberMemory();
  }
  report(state, backend->pool(),
         2.0 * static_cast<double>(num_tokens * shape.in_features) * static_cast<double>(shape.out_features),
         static_cast<double>(linear->size_bytes()));
}

void register_all() {
  constexpr std::pair<const char*, Kind> kKinds[] = {{"F16", Kind::F16},
                                                     {"Fp8Channel", Kind::Fp8Channel},
                                                     {"Fp8Block", Kind::Fp8Block},
                                                     {"Int8G128", Kind::Int8G128},
                                                     {"Int4G128", Kind::Int4G128},
                                                     {"Int4G64", Kind::Int4G64},
                                                     {"Int3G128", Kind::Int3G128},
                                                     {"Int2G128", Kind::Int2G128},
                                                     {"Codebook4", Kind::Codebook4},
                                                     {"Codebook4Sparse", Kind::Codebook4Sparse},
                                                     {"Codebook3", Kind::Codebook3}};
  for (const auto& [kind_name, kind] : kKinds) {
    for (const LinearShape& shape : kShapes) {
      const std::string name = std::string(kind_name) + "/" + shape.name;
      benchmark::RegisterBenchmark(name.c_str(), linear, kind, shape)
          ->Arg(1)
          ->Arg(4)
          ->Arg(8)
          ->Arg(64)
          ->Arg(512)
          ->Unit(benchmark::kMicrosecond)
          ->UseRealTime()
          ->MinTime(0.2);
    }
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
