#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "weights/linear_weights.h"

namespace nibble::weights {

enum class GroupOrder : std::uint8_t { AsStored, Shuffled };  // Shuffled: a g_idx as desc_act makes it

/// A random linear and, beside it, the unpacked numbers it was made from.
struct RandomGroupedInt {
  GroupedIntWeights weights;
  std::vector<std::uint8_t> codes;  // [out, in]

  /// By the definition in linear_weights.h, from the unpacked numbers.
  float value(std::int64_t o, std::int64_t i) const {
    const std::int64_t g =
        weights.has_g_idx() ? weights.g_idx.span<std::int32_t>()[static_cast<std::size_t>(i)] : i / weights.group_size;
    const float scale = to_float(weights.scales.matrix<Half>().row(o)[g]);
    const int code = codes[static_cast<std::size_t>(o * weights.in_features + i)];
    return scale * static_cast<float>(code - weights.zeros.matrix<std::int16_t>().row(o)[g]);
  }
};

struct GroupedIntShape {
  std::int64_t out_features = 8;
  std::int64_t in_features = 64;
  std::int32_t bits = 4;
  std::int64_t group_size = 32;
  int smallest_zero = 0;
  GroupOrder order = GroupOrder::AsStored;
};

inline RandomGroupedInt make_random_grouped_int(const GroupedIntShape& shape, std::mt19937& random) {
  RandomGroupedInt made;
  GroupedIntWeights& w = made.weights;
  w.out_features = shape.out_features;
  w.in_features = shape.in_features;
  w.bits = shape.bits;
  w.group_size = shape.group_size;
  const std::int64_t num_groups = (w.in_features + w.group_size - 1) / w.group_size;
  const int num_codes = 1 << w.bits;
  made.codes.resize(static_cast<std::size_t>(w.out_features * w.in_features));
  for (std::uint8_t& code : made.codes) {
    code = static_cast<std::uint8_t>(std::uniform_int_distribution<int>(0, num_codes - 1)(random));
  }
  w.codes = Tensor::empty(DType::U8, {w.out_features, packed_row_bytes(w.in_features, w.bits)});
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    const auto in = static_cast<std::size_t>(w.in_features);
    pack_codes(std::span(made.codes).subspan(static_cast<std::size_t>(o) * in, in), w.bits,
               w.codes.matrix<std::uint8_t>().row_span(o));
  }
  w.scales = Tensor::empty(DType::F16, {w.out_features, num_groups});
  std::uniform_real_distribution<float> scale(0.001f, 0.1f);
  for (Half& value : w.scales.span<Half>()) value = to_half(scale(random));
  w.zeros = Tensor::empty(DType::I16, {w.out_features, num_groups});
  std::uniform_int_distribution<int> zero(shape.smallest_zero, num_codes - 1);
  for (std::int16_t& value : w.zeros.span<std::int16_t>()) value = static_cast<std::int16_t>(zero(random));
  if (shape.order == GroupOrder::Shuffled) {
    w.g_idx = Tensor::empty(DType::I32, {w.in_features});
    const auto groups = w.g_idx.span<std::int32_t>();
    for (std::size_t i = 0; i < groups.size(); ++i) {
      groups[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) / w.group_size);
    }
    std::shuffle(groups.begin(), groups.end(), random);
  }
  return made;
}

}  // namespace nibble::weights
