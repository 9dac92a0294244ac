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
  // Of both signs, as guided rounding makes them.
  std::uniform_real_distribution<float> scale(0.001f, 0.1f);
  for (Half& value : w.scales.span<Half>()) value = to_half(random() % 4 == 0 ? -scale(random) : scale(random));
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

struct CodebookShape {
  std::int64_t out_features = 8;
  std::int64_t in_features = 64;
  std::int32_t bits = 4;
  double sparsity = 0;  // share of inputs that have a sparse value as well
  DType table_dtype = DType::F16;
};

/// Random codes, tables and sparse values at ascending columns.
inline CodebookWeights make_random_codebook(const CodebookShape& shape, std::mt19937& random) {
  CodebookWeights w;
  w.out_features = shape.out_features;
  w.in_features = shape.in_features;
  w.bits = shape.bits;
  w.codes = Tensor::empty(DType::U8, {w.out_features, packed_row_bytes(w.in_features, w.bits)});
  std::vector<std::uint8_t> row(static_cast<std::size_t>(w.in_features));
  std::vector<std::int32_t> rows{0};
  std::vector<std::int32_t> cols;
  std::vector<float> vals;
  std::normal_distribution<float> normal;
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] = static_cast<std::uint8_t>(random() % (1u << w.bits));
      if (std::uniform_real_distribution<double>()(random) >= shape.sparsity) continue;
      cols.push_back(static_cast<std::int32_t>(i));
      vals.push_back(normal(random));
    }
    rows.push_back(static_cast<std::int32_t>(cols.size()));
    pack_codes(row, w.bits, w.codes.matrix<std::uint8_t>().row_span(o));
  }
  Tensor table = Tensor::empty(DType::F32, {w.out_features, std::int64_t{1} << w.bits});
  for (float& value : table.span<float>()) value = normal(random);
  w.lookup_table = to_dtype(table, shape.table_dtype);
  if (cols.empty()) return w;
  const auto count = static_cast<std::int64_t>(cols.size());
  w.rows = Tensor::copy_of({rows.data(), DType::I32, {w.out_features + 1}});
  w.cols = Tensor::copy_of({cols.data(), DType::I32, {count}});
  w.vals = Tensor::copy_of({vals.data(), DType::F32, {count}});
  return w;
}

}  // namespace nibble::weights
