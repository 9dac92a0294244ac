#include <cstdint>
#include <string>
#include <vector>

#include "weights/kinds.h"

namespace nibble::weights {
namespace {

bool is_symmetric(const GroupedIntWeights& w) {
  const auto middle = static_cast<std::int16_t>(1 << (w.bits - 1));
  for (const std::int16_t zero : w.zeros.span<std::int16_t>()) {
    if (zero != middle) return false;
  }
  return true;
}

std::int64_t expected_num_groups(const GroupedIntWeights& w) {
  return (w.first_group_offset + w.in_features + w.group_size - 1) / w.group_size;
}

void validate_g_idx(const GroupedIntWeights& w) {
  expect_shape(w.g_idx, {w.in_features}, "g_idx");
  const std::int64_t num_groups = w.num_groups();
  for (const std::int32_t group : w.g_idx.span<std::int32_t>()) {
    if (group < 0 || group >= num_groups) {
      throw Error(ErrorCode::Corrupt,
                  "g_idx: group " + std::to_string(group) + " outside 0…" + std::to_string(num_groups - 1));
    }
  }
}

}  // namespace

std::int64_t out_features_of(const GroupedIntWeights& w) {
  return w.out_features;
}
std::int64_t in_features_of(const GroupedIntWeights& w) {
  return w.in_features;
}

std::int64_t size_bytes_of(const GroupedIntWeights& w) {
  return static_cast<std::int64_t>(w.codes.size_bytes() + w.scales.size_bytes() + w.zeros.size_bytes() +
                                   w.g_idx.size_bytes());
}

std::string describe_kind(const GroupedIntWeights& w) {
  return "int" + std::to_string(w.bits) + " g" + std::to_string(w.group_size) + (is_symmetric(w) ? " sym" : " asym") +
         (w.has_g_idx() ? " desc_act" : "");
}

void validate_kind(const GroupedIntWeights& w) {
  if (w.bits != 2 && w.bits != 3 && w.bits != 4 && w.bits != 8) {
    throw Error(ErrorCode::Unsupported, "bits " + std::to_string(w.bits) + "; 2, 3, 4 and 8 are supported");
  }
  if (w.out_features <= 0 || w.in_features <= 0 || w.group_size <= 0 || w.first_group_offset < 0 ||
      w.first_group_offset >= w.group_size) {
    throw Error(ErrorCode::Corrupt, "sizes and group_size must be positive, found [" + std::to_string(w.out_features) +
                                        ", " + std::to_string(w.in_features) + "] with group_size " +
                                        std::to_string(w.group_size));
  }
  expect_shape(w.codes, {w.out_features, packed_row_bytes(w.in_features, w.bits)}, "packed codes");
  if (w.scales.is_empty() || w.scales.shape().rank() != 2) throw Error(ErrorCode::Corrupt, "scales: expected a matrix");
  // With g_idx a slice keeps every group, so only the lower bound of their number is known.
  const std::int64_t num_groups = w.has_g_idx() ? w.num_groups() : expected_num_groups(w);
  expect_shape(w.scales, {w.out_features, num_groups}, "scales");
  expect_shape(w.zeros, {w.out_features, num_groups}, "zeros");
  expect_finite(w.scales, "scales");
  for (const std::int16_t zero : w.zeros.span<std::int16_t>()) {
    if (zero < 0 || zero > (1 << w.bits)) {
      throw Error(ErrorCode::Corrupt, "zeros: " + std::to_string(zero) + " outside 0…" + std::to_string(1 << w.bits));
    }
  }
  if (w.has_g_idx()) validate_g_idx(w);
}

void dequantize_rows_of(const GroupedIntWeights& w, std::int64_t first_row, Matrix<float> to) {
  const auto num_groups = static_cast<std::size_t>(w.num_groups());
  const auto in = static_cast<std::size_t>(w.in_features);
  std::vector<std::uint8_t> codes(in);
  std::vector<float> scales(num_groups);
  std::vector<std::int32_t> groups(in);
  for (std::size_t i = 0; i < in; ++i) {
    groups[i] = w.has_g_idx()
                    ? w.g_idx.span<std::int32_t>()[i]
                    : static_cast<std::int32_t>((w.first_group_offset + static_cast<std::int64_t>(i)) / w.group_size);
  }
  const auto packed = w.codes.matrix<std::uint8_t>();
  const auto zeros = w.zeros.matrix<std::int16_t>();
  for (std::int64_t r = 0; r < to.rows; ++r) {
    const std::int64_t o = first_row + r;
    unpack_codes(packed.row_span(o), w.bits, codes);
    to_float32(w.scales.view().rows(o, 1).data(), w.scales.dtype(), w.num_groups(), scales.data());
    const std::int16_t* row_zeros = zeros.row(o);
    float* out = to.row(r);
    for (std::size_t i = 0; i < in; ++i) {
      const auto g = static_cast<std::size_t>(groups[i]);
      out[i] = scales[g] * static_cast<float>(static_cast<int>(codes[i]) - row_zeros[g]);
    }
  }
}

GroupedIntWeights slice_outputs_of(const GroupedIntWeights& w, std::int64_t first, std::int64_t count) {
  GroupedIntWeights slice;
  slice.out_features = count;
  slice.in_features = w.in_features;
  slice.bits = w.bits;
  slice.group_size = w.group_size;
  slice.first_group_offset = w.first_group_offset;
  slice.codes = copy_rows(w.codes, first, count);
  slice.scales = copy_rows(w.scales, first, count);
  slice.zeros = copy_rows(w.zeros, first, count);
  if (w.has_g_idx()) slice.g_idx = Tensor::copy_of(w.g_idx);
  return slice;
}

GroupedIntWeights slice_inputs_of(const GroupedIntWeights& w, std::int64_t first, std::int64_t count) {
  GroupedIntWeights slice;
  slice.out_features = w.out_features;
  slice.in_features = count;
  slice.bits = w.bits;
  slice.group_size = w.group_size;
  slice.codes = slice_code_columns(w.codes, w.in_features, w.bits, first, count);
  if (w.has_g_idx()) {  // groups are scattered: every rank keeps all of them
    slice.scales = Tensor::copy_of(w.scales);
    slice.zeros = Tensor::copy_of(w.zeros);
    slice.g_idx = copy_rows(w.g_idx, first, count);
    return slice;
  }
  const std::int64_t begin = w.first_group_offset + first;
  const std::int64_t first_group = begin / w.group_size;
  const std::int64_t end_group = (begin + count + w.group_size - 1) / w.group_size;
  slice.first_group_offset = begin % w.group_size;
  slice.scales = copy_columns(w.scales, first_group, end_group - first_group);
  slice.zeros = copy_columns(w.zeros, first_group, end_group - first_group);
  return slice;
}

Tensor slice_code_columns(const Tensor& codes, std::int64_t in_features, std::int32_t bits, std::int64_t first,
                          std::int64_t count) {
  const std::int64_t rows = codes.shape()[0];
  Tensor slice = Tensor::empty(DType::U8, {rows, packed_row_bytes(count, bits)});
  std::vector<std::uint8_t> row(static_cast<std::size_t>(in_features));
  const auto source = codes.matrix<std::uint8_t>();
  const auto target = slice.matrix<std::uint8_t>();
  for (std::int64_t r = 0; r < rows; ++r) {
    unpack_codes(source.row_span(r), bits, row);
    pack_codes(std::span(row).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), bits,
               target.row_span(r));
  }
  return slice;
}

}  // namespace nibble::weights
