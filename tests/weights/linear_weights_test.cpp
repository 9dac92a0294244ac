#include "weights/linear_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/expect_error.h"
#include "weights/random_weights.h"

namespace nibble::weights {
namespace {

std::vector<std::uint32_t> packed_words(const std::vector<std::uint8_t>& codes, std::int32_t bits) {
  std::vector<std::uint32_t> words(
      static_cast<std::size_t>(packed_row_bytes(static_cast<std::int64_t>(codes.size()), bits)) / 4);
  pack_codes(codes, bits, {reinterpret_cast<std::uint8_t*>(words.data()), words.size() * 4});
  return words;
}

std::vector<std::uint8_t> ramp(int count, int modulus, int first = 0) {
  std::vector<std::uint8_t> codes;
  for (int i = 0; i < count; ++i) codes.push_back(static_cast<std::uint8_t>((first + i) % modulus));
  return codes;
}

TEST(PackCodes, GivesTheGoldenWords) {
  EXPECT_EQ(packed_words(ramp(8, 8), 4), (std::vector<std::uint32_t>{0x76543210}));
  EXPECT_EQ(packed_words(ramp(16, 4), 2), (std::vector<std::uint32_t>{0xe4e4e4e4}));
  EXPECT_EQ(packed_words(ramp(4, 256, 1), 8), (std::vector<std::uint32_t>{0x04030201}));
  EXPECT_EQ(packed_words(ramp(32, 8), 3), (std::vector<std::uint32_t>{0x88fac688, 0xc688fac6, 0xfac688fa}));
  EXPECT_EQ(packed_words(std::vector<std::uint8_t>(32, 3), 3),
            (std::vector<std::uint32_t>{0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D}));
  EXPECT_EQ(packed_words(std::vector<std::uint8_t>(32, 4), 3),
            (std::vector<std::uint32_t>{0x24924924, 0x49249249, 0x92492492}));
}

TEST(PackCodes, ComesBackForEveryLengthAndFillsTheLastWordWithZeros) {
  for (const std::int32_t bits : {2, 3, 4, 8}) {
    for (int length = 1; length <= 70; ++length) {
      const std::vector<std::uint8_t> codes = ramp(length, 1 << bits, 5 % (1 << bits));
      std::vector<std::uint8_t> packed(static_cast<std::size_t>(packed_row_bytes(length, bits)), 0xff);
      pack_codes(codes, bits, packed);
      std::vector<std::uint8_t> back(codes.size());
      unpack_codes(packed, bits, back);
      ASSERT_EQ(back, codes) << bits << " bits, length " << length;
      for (std::size_t bit = static_cast<std::size_t>(length * bits); bit < packed.size() * 8; ++bit) {
        ASSERT_EQ((packed[bit / 8] >> (bit % 8)) & 1, 0) << bits << " bits, length " << length;
      }
    }
  }
}

TEST(DenseWeights, DequantizesAndSlices) {
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const LinearWeights dense = DenseWeights{to_dtype({values.data(), DType::F32, {2, 3}}, DType::BF16)};
  EXPECT_EQ(out_features(dense), 2);
  EXPECT_EQ(in_features(dense), 3);
  EXPECT_EQ(size_bytes(dense), 12);
  EXPECT_EQ(dequantize(dense).span<float>()[4], 5);
  EXPECT_EQ(dequantize(slice_outputs(dense, 1, 1)).span<float>()[0], 4);
  const Tensor columns = dequantize(slice_inputs(dense, 1, 2));
  EXPECT_EQ(columns.shape(), Shape({2, 2}));
  EXPECT_EQ(columns.span<float>()[2], 5);
}

Fp8Weights make_fp8(std::int64_t out, std::int64_t in, Shape scales, std::int64_t block_size) {
  Fp8Weights w;
  w.weight = Tensor::empty(DType::F8E4M3, {out, in});
  std::uint8_t bits = 0;
  for (Fp8E4M3& value : w.weight.span<Fp8E4M3>()) value = {bits = static_cast<std::uint8_t>((bits + 7) % 0x7e)};
  w.scale = Tensor::empty(DType::F32, scales);
  float next = 0.5f;
  for (float& scale : w.scale.span<float>()) scale = next += 0.25f;
  w.block_size = block_size;
  return w;
}

TEST(Fp8Weights, MultipliesByTheScaleOfTensorChannelOrBlock) {
  const auto code = [](const Fp8Weights& w, std::size_t at) { return to_float(w.weight.span<Fp8E4M3>()[at]); };
  const Fp8Weights tensor = make_fp8(4, 6, {1}, 0);
  EXPECT_EQ(dequantize(Fp8Weights(make_fp8(4, 6, {1}, 0))).span<float>()[23], code(tensor, 23) * 0.75f);
  const Fp8Weights channel = make_fp8(4, 6, {4}, 0);
  EXPECT_EQ(dequantize(Fp8Weights(make_fp8(4, 6, {4}, 0))).span<float>()[23], code(channel, 23) * 1.5f);
  const Fp8Weights block = make_fp8(4, 6, {2, 3}, 2);
  EXPECT_EQ(dequantize(Fp8Weights(make_fp8(4, 6, {2, 3}, 2))).span<float>()[3 * 6 + 2], code(block, 20) * 1.75f);
}

CodebookWeights make_codebook() {
  CodebookWeights w;
  w.out_features = 2;
  w.in_features = 3;
  w.bits = 3;
  w.codes = Tensor::zeros(DType::U8, {2, 4});
  const std::vector<std::uint8_t> first{7, 0, 1};
  const std::vector<std::uint8_t> second{2, 2, 6};
  pack_codes(first, 3, w.codes.matrix<std::uint8_t>().row_span(0));
  pack_codes(second, 3, w.codes.matrix<std::uint8_t>().row_span(1));
  w.lookup_table = Tensor::empty(DType::F32, {2, 8});
  float next = 0;
  for (float& value : w.lookup_table.span<float>()) value = next++;
  const std::int32_t rows[] = {0, 1, 3};
  const std::int32_t cols[] = {2, 0, 1};
  const float vals[] = {100, 200, 300};
  w.rows = Tensor::copy_of({rows, DType::I32, {3}});
  w.cols = Tensor::copy_of({cols, DType::I32, {3}});
  w.vals = Tensor::copy_of({vals, DType::F32, {3}});
  return w;
}

std::vector<float> values_of(const LinearWeights& weights) {
  const Tensor dense = dequantize(weights);
  const auto values = dense.span<float>();
  return {values.begin(), values.end()};
}

TEST(CodebookWeights, AddsTheSparseValuesToTheTable) {
  EXPECT_NO_THROW(validate(make_codebook()));
  EXPECT_EQ(values_of(make_codebook()), (std::vector<float>{7, 0, 101, 210, 310, 14}));
}

TEST(CodebookWeights, SlicesRenumberTheSparseRowsAndColumns) {
  const LinearWeights whole = make_codebook();
  EXPECT_EQ(values_of(slice_outputs(whole, 1, 1)), (std::vector<float>{210, 310, 14}));
  EXPECT_EQ(values_of(slice_inputs(whole, 1, 2)), (std::vector<float>{0, 101, 310, 14}));
}

TEST(CodebookWeights, HoldTheLinearsOfALlama70BAt3BitsIn26Gigabytes) {
  struct LinearShape {
    std::int64_t out_features;
    std::int64_t in_features;
  };
  constexpr LinearShape kBlock[] = {{8192, 8192},  {1024, 8192},  {1024, 8192}, {8192, 8192},
                                    {28672, 8192}, {28672, 8192}, {8192, 28672}};
  std::mt19937 random(1);
  std::int64_t block_bytes = 0;
  for (const LinearShape& shape : kBlock) {  // a row takes what every other one does
    const LinearWeights row =
        make_random_codebook({.out_features = 1, .in_features = shape.in_features, .bits = 3}, random);
    block_bytes += shape.out_features * size_bytes(row);
  }
  EXPECT_LT(80 * block_bytes, 26'000'000'000);
  EXPECT_GT(80 * block_bytes, 25'000'000'000);
}

TEST(CodebookWeights, RefusesBrokenTablesAndRows) {
  const auto expect_corrupt = [](const char* part, auto&& change) {
    CodebookWeights w = make_codebook();
    change(w);
    expect_error(ErrorCode::Corrupt, part, [&] { validate(std::move(w)); });
  };
  expect_corrupt("rows", [](CodebookWeights& w) { w.rows.span<std::int32_t>()[1] = 4; });
  expect_corrupt("rows", [](CodebookWeights& w) { w.rows.span<std::int32_t>()[2] = 2; });
  expect_corrupt("cols", [](CodebookWeights& w) { w.cols.span<std::int32_t>()[0] = 3; });
  expect_corrupt("cols", [](CodebookWeights& w) { w.cols.span<std::int32_t>()[0] = -1; });
  expect_corrupt("NaN", [](CodebookWeights& w) { w.lookup_table.span<float>()[5] = std::nanf(""); });
  expect_corrupt("lookup_table", [](CodebookWeights& w) { w.lookup_table = Tensor::zeros(DType::F32, {2, 4}); });
}

}  // namespace
}  // namespace nibble::weights
