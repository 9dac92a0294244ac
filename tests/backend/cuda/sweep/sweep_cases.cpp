#include "sweep_cases.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/error.h"

namespace nibble::backend::test {
namespace {

// Weights of the largest part, which is gate or up of Llama-2 70B, and of the largest dense one, the head of Llama-3; a
// piece begins anywhere in a window behind.
constexpr std::int64_t kLargestPart = std::int64_t{28672} * 8192;
constexpr std::int64_t kLargestDense = std::int64_t{128256} * 4096;
constexpr std::int64_t kWindow = std::int64_t{1} << 24;

struct Model {
  const char* name;
  std::int64_t hidden, kv, intermediate, vocab;
};

constexpr Model kModels[] = {
    {"llama-2-7b", 4096, 4096, 11008, 32000},   {"llama-2-13b", 5120, 5120, 13824, 32000},
    {"llama-2-70b", 8192, 1024, 28672, 32000},  {"llama-3-8b", 4096, 1024, 14336, 128256},
    {"mixtral-8x7b", 4096, 1024, 14336, 32000}, {"smollm2-135m", 576, 192, 1536, 49152},
    {"smollm2-360m", 960, 320, 2560, 49152},    {"smollm2-1.7b", 2048, 2048, 8192, 49152},
};

std::uint64_t step(std::uint64_t& state) {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545f4914f6cdd1du;
}

weights::LinearWeights make_dense(std::int64_t out, std::int64_t in, Noise& noise) {
  return weights::DenseWeights{noise.halves({out, in})};
}

/// The group of each input, in random order: the same for all parts of a fused linear, whose Hessian is one, but for
/// parts of odd sizes.
Tensor shuffled_groups(std::int64_t out, std::int64_t in, std::int64_t group_size) {
  std::uint64_t state = static_cast<std::uint64_t>(in + out % 2 * out);
  Tensor g_idx = Tensor::empty(DType::I32, {in});
  const auto groups = g_idx.span<std::int32_t>();
  for (std::size_t i = 0; i < groups.size(); ++i) {
    groups[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) / group_size);
  }
  for (std::size_t i = groups.size(); i > 1; --i) std::swap(groups[i - 1], groups[step(state) % i]);
  return g_idx;
}

Method int_method(std::int32_t bits, std::int64_t group_size, bool has_g_idx) {
  const std::string group = group_size == 0 ? "whole" : "g" + std::to_string(group_size);
  return {.name = "int" + std::to_string(bits) + "-" + group + (has_g_idx ? "-g_idx" : ""),
          .group_size = std::max<std::int64_t>(group_size, 1),
          .make = [=](std::int64_t out, std::int64_t in, Noise& noise) -> weights::LinearWeights {
            weights::GroupedIntWeights w;
            w.out_features = out;
            w.in_features = in;
            w.bits = bits;
            w.group_size = group_size == 0 ? in : group_size;
            const std::int64_t num_groups = in / w.group_size;
            w.codes = noise.bytes(DType::U8, {out, weights::packed_row_bytes(in, bits)});
            w.scales = noise.halves({out, num_groups});
            w.zeros = Tensor::empty(DType::I16, {out, num_groups});
            for (std::int16_t& zero : w.zeros.span<std::int16_t>()) {
              zero = static_cast<std::int16_t>(noise.next() % ((1u << bits) + 1));
            }
            if (has_g_idx) w.g_idx = shuffled_groups(out, in, w.group_size);
            return w;
          }};
}

Method fp8_method(std::string name, std::int64_t block_size, bool per_channel) {
  return {.name = std::move(name), .make = [=](std::int64_t out, std::int64_t in, Noise& noise) {
            weights::Fp8Weights w;
            w.weight = noise.e4m3({out, in});
            w.block_size = block_size;
            const Shape shape = block_size > 0
                                    ? Shape{(out + block_size - 1) / block_size, (in + block_size - 1) / block_size}
                                : per_channel ? Shape{out}
                                              : Shape{1};
            w.scale = Tensor::empty(DType::F32, shape);
            for (float& scale : w.scale.span<float>())
              scale = 1e-3f + 1e-8f * static_cast<float>(noise.next() % 1'000'000);
            return weights::LinearWeights(std::move(w));
          }};
}

Method with_rounded_inputs(Method method, std::int64_t rounded_run) {
  method.name += "-w8a8";
  method.rounded_run = rounded_run;
  return method;
}

/// Sparse values of a row in rising columns: none in some rows, a quarter of all inputs in others.
void add_sparse(weights::CodebookWeights& w, Noise& noise) {
  std::vector<std::int32_t> rows{0}, cols;
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    const std::int64_t share = o % 97 == 13 ? 4 : o % 7 == 2 ? w.in_features + 1 : 222;  // 0.45 %
    for (std::int64_t first = 0; first + share <= w.in_features; first += share) {
      cols.push_back(static_cast<std::int32_t>(first + noise.next() % share));
    }
    rows.push_back(static_cast<std::int32_t>(cols.size()));
  }
  const auto copy = [](const std::vector<std::int32_t>& from) {
    return Tensor::copy_of(TensorView(from.data(), DType::I32, {static_cast<std::int64_t>(from.size())}));
  };
  w.rows = copy(rows);
  w.cols = copy(cols);
  w.vals = to_dtype(noise.halves({static_cast<std::int64_t>(cols.size())}), DType::F32);
}

Method codebook_method(std::int32_t bits, bool is_sparse) {
  return {.name = "codebook" + std::to_string(bits) + (is_sparse ? "-sparse" : ""),
          .make = [=](std::int64_t out, std::int64_t in, Noise& noise) -> weights::LinearWeights {
            weights::CodebookWeights w;
            w.out_features = out;
            w.in_features = in;
            w.bits = bits;
            w.codes = noise.bytes(DType::U8, {out, weights::packed_row_bytes(in, bits)});
            w.lookup_table = noise.halves({out, std::int64_t{1} << bits});
            if (is_sparse) add_sparse(w, noise);
            return w;
          }};
}

}  // namespace

std::vector<FusedShape> model_shapes() {
  std::vector<FusedShape> shapes;
  for (const Model& m : kModels) {
    const std::string name = m.name;
    shapes.push_back({name + " qkv", m.hidden, {m.hidden, m.kv, m.kv}});
    shapes.push_back({name + " o", m.hidden, {m.hidden}});
    shapes.push_back({name + " gate_up", m.hidden, {m.intermediate, m.intermediate}});
    shapes.push_back({name + " down", m.intermediate, {m.hidden}});
  }
  return shapes;
}

std::vector<FusedShape> head_shapes() {
  std::vector<FusedShape> shapes;
  for (const Model& m : kModels) shapes.push_back({std::string(m.name) + " lm_head", m.hidden, {m.vocab}});
  return shapes;
}

std::vector<FusedShape> odd_shapes() {
  return {{"odd 1x32", 32, {1}},           {"odd 7x100", 100, {7}},         {"odd 17x160", 160, {17, 3}},
          {"odd 33x1000", 1000, {33}},     {"odd 200x576", 576, {200, 72}}, {"odd 1001x1280", 1280, {1001}},
          {"odd 130x11008", 11008, {130}}, {"odd 4100x4224", 4224, {4100}}};
}

std::vector<FusedShape> whole_shapes() {
  return {{"whole 576x576", 576, {576, 192, 192}}, {"whole 1536x576", 576, {1536, 1536}},
          {"whole 576x1536", 1536, {576}},         {"whole 256x4096", 4096, {256}},
          {"whole 1000x640", 640, {1000}},         {"whole 77x1280", 1280, {77, 40}}};
}

Noise::Noise(ThreadPool& pool)
    : bytes_(Tensor::empty(DType::U8, {kLargestPart + kWindow})),
      halves_(Tensor::empty(DType::F16, {kLargestDense + kWindow})),
      e4m3_(Tensor::empty(DType::F8E4M3, {kLargestPart + kWindow})) {
  constexpr std::int64_t kTask = std::int64_t{1} << 20;
  static_assert((kLargestPart + kWindow) % kTask == 0 && (kLargestDense + kWindow) % kTask == 0);
  std::uint8_t* bytes = bytes_.span<std::uint8_t>().data();
  Half* halves = halves_.span<Half>().data();
  Fp8E4M3* codes = e4m3_.span<Fp8E4M3>().data();
  pool.run((kLargestDense + kWindow) / kTask, [&](std::int64_t task, int) {
    std::uint64_t state = 0x9e3779b97f4a7c15u * static_cast<std::uint64_t>(task + 1);
    for (std::int64_t i = task * kTask; i < (task + 1) * kTask; i += 4) {
      const std::uint64_t word = step(state);
      for (int l = 0; l < 4; ++l) {
        halves[i + l].bits = static_cast<std::uint16_t>(((word >> (16 * l)) & 0x83ffu) | (9u << 10));
      }
      if (i >= kLargestPart + kWindow) continue;
      const std::uint64_t other = step(state);
      for (int l = 0; l < 4; ++l) {
        bytes[i + l] = static_cast<std::uint8_t>(other >> (8 * l));
        const auto code = static_cast<std::uint8_t>(other >> (32 + 8 * l));
        codes[i + l].bits = (code & 0x7fu) == 0x7fu ? std::uint8_t{0x30} : code;
      }
    }
  });
}

Tensor Noise::take(const Tensor& pool, DType dtype, const Shape& shape) {
  const std::int64_t begin = static_cast<std::int64_t>(next()) % (kWindow / 64) * 64;  // aligned as in files
  const std::int64_t bytes = shape.num_elements() * static_cast<std::int64_t>(size_bytes(dtype));
  check(begin + bytes <= static_cast<std::int64_t>(pool.size_bytes()), "the sweep's noise is too short");
  return Tensor::borrow({static_cast<const std::byte*>(pool.view().data()) + begin, dtype, shape});
}

Tensor Noise::bytes(DType dtype, Shape shape) {
  return take(bytes_, dtype, shape);
}

Tensor Noise::halves(Shape shape) {
  return take(halves_, DType::F16, shape);
}

Tensor Noise::e4m3(Shape shape) {
  return take(e4m3_, DType::F8E4M3, shape);
}

std::uint32_t Noise::next() {
  return static_cast<std::uint32_t>(step(state_) >> 32);
}

std::vector<Method> sweep_methods() {
  std::vector<Method> methods{{.name = "f16", .make = make_dense}};
  for (const std::int32_t bits : {2, 3, 4, 8}) {
    for (const std::int64_t group_size : {32, 64, 128, 0}) methods.push_back(int_method(bits, group_size, false));
    for (const std::int64_t group_size : {32, 128}) methods.push_back(int_method(bits, group_size, true));
  }
  methods.push_back(fp8_method("fp8-tensor", 0, false));
  methods.push_back(fp8_method("fp8-channel", 0, true));
  methods.push_back(fp8_method("fp8-block", 128, false));
  methods.push_back(with_rounded_inputs(fp8_method("fp8-tensor", 0, false), kWholeRow));
  methods.push_back(with_rounded_inputs(fp8_method("fp8-channel", 0, true), kWholeRow));
  methods.push_back(with_rounded_inputs(fp8_method("fp8-block", 128, false), 128));
  for (const std::int32_t bits : {3, 4}) {
    methods.push_back(codebook_method(bits, false));
    methods.push_back(codebook_method(bits, true));
  }
  return methods;
}

}  // namespace nibble::backend::test
