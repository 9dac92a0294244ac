#include "weights/linear_weights.h"

#include "weights/kinds.h"

namespace nibble::weights {

std::int64_t out_features(const LinearWeights& weights) {
  return std::visit([](const auto& w) { return out_features_of(w); }, weights);
}

std::int64_t in_features(const LinearWeights& weights) {
  return std::visit([](const auto& w) { return in_features_of(w); }, weights);
}

std::int64_t size_bytes(const LinearWeights& weights) {
  return std::visit([](const auto& w) { return size_bytes_of(w); }, weights);
}

std::string describe(const LinearWeights& weights) {
  return std::visit([](const auto& w) { return describe_kind(w); }, weights);
}

void validate(const LinearWeights& weights) {
  std::visit([](const auto& w) { validate_kind(w); }, weights);
}

Tensor dequantize(const LinearWeights& weights) {
  Tensor dense = Tensor::empty(DType::F32, {out_features(weights), in_features(weights)});
  dequantize_rows(weights, 0, dense.matrix<float>());
  return dense;
}

void dequantize_rows(const LinearWeights& weights, std::int64_t first_row, Matrix<float> to) {
  check(first_row >= 0 && first_row + to.rows <= out_features(weights) && to.cols == in_features(weights),
        "dequantize_rows: matrix of another shape");
  std::visit([&](const auto& w) { dequantize_rows_of(w, first_row, to); }, weights);
}

LinearWeights slice_outputs(const LinearWeights& weights, std::int64_t first, std::int64_t count) {
  check(first >= 0 && count >= 0 && first + count <= out_features(weights), "slice_outputs out of range");
  return std::visit([&](const auto& w) -> LinearWeights { return slice_outputs_of(w, first, count); }, weights);
}

LinearWeights slice_inputs(const LinearWeights& weights, std::int64_t first, std::int64_t count) {
  check(first >= 0 && count >= 0 && first + count <= in_features(weights), "slice_inputs out of range");
  return std::visit([&](const auto& w) -> LinearWeights { return slice_inputs_of(w, first, count); }, weights);
}

std::int64_t packed_row_bytes(std::int64_t in_features, std::int32_t bits) {
  return (checked_multiply(in_features, bits) + 31) / 32 * 4;
}

void pack_codes(std::span<const std::uint8_t> codes, std::int32_t bits, std::span<std::uint8_t> packed) {
  for (auto& byte : packed) byte = 0;
  std::size_t bit = 0;
  for (const std::uint8_t code : codes) {
    // A code of at most 8 bits touches at most two bytes.
    const unsigned shifted = static_cast<unsigned>(code) << (bit % 8);
    packed[bit / 8] |= static_cast<std::uint8_t>(shifted);
    if (bit % 8 + static_cast<unsigned>(bits) > 8) packed[bit / 8 + 1] |= static_cast<std::uint8_t>(shifted >> 8);
    bit += static_cast<std::size_t>(bits);
  }
}

void unpack_codes(std::span<const std::uint8_t> packed, std::int32_t bits, std::span<std::uint8_t> codes) {
  if (bits == 4) {  // what nearly every checkpoint holds: worth a loop that vectorizes
    for (std::size_t pair = 0; pair < codes.size() / 2; ++pair) {
      codes[2 * pair] = packed[pair] & 15u;
      codes[2 * pair + 1] = packed[pair] >> 4;
    }
    if (codes.size() % 2 == 1) codes.back() = packed[codes.size() / 2] & 15u;
    return;
  }
  const unsigned mask = (1u << bits) - 1;
  std::size_t bit = 0;
  for (std::uint8_t& code : codes) {
    unsigned pair = packed[bit / 8];
    if (bit % 8 + static_cast<unsigned>(bits) > 8) pair |= static_cast<unsigned>(packed[bit / 8 + 1]) << 8;
    code = static_cast<std::uint8_t>((pair >> (bit % 8)) & mask);
    bit += static_cast<std::size_t>(bits);
  }
}

}  // namespace nibble::weights
