// Properties of the disk formats over random linears: what is written reads back as the same numbers.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/temporary_folder.h"
#include "formats/checkpoint.h"
#include "formats/linear_format.h"
#include "formats/quantization_config.h"
#include "weights/random_weights.h"

namespace nibble::formats {
namespace {

using weights::GroupedIntShape;
using weights::GroupedIntWeights;
using weights::GroupOrder;

bool equal(const Tensor& a, const Tensor& b) {
  if (a.is_empty() || b.is_empty()) return a.is_empty() == b.is_empty();
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.view().data(), b.view().data(), a.size_bytes()) == 0;
}

std::int64_t pick(const std::vector<std::int64_t>& values, std::mt19937& random) {
  return values[std::uniform_int_distribution<std::size_t>(0, values.size() - 1)(random)];
}

/// A shape that the format can hold.
GroupedIntShape random_shape(std::string_view format, std::mt19937& random) {
  GroupedIntShape shape;
  shape.out_features = pick({32, 64, 96, 160}, random);
  shape.in_features = pick({64, 128, 192, 320}, random);
  shape.group_size = pick({32, 64, shape.in_features}, random);
  if (format == "awq") return shape;
  shape.bits = static_cast<std::int32_t>(pick({2, 3, 4, 8}, random));
  if (format == "compressed-tensors") {
    shape.out_features += pick({0, 1, 7}, random);  // streams may end inside a word
    return shape;
  }
  shape.smallest_zero = format == "gptq" ? 1 : 0;
  if (shape.group_size < shape.in_features && random() % 2 == 0) shape.order = GroupOrder::Shuffled;
  return shape;
}

QuantizationConfig config_of(const GroupedIntShape& shape) {
  QuantizationConfig config;
  config.bits = shape.bits;
  config.group_size = shape.group_size;
  config.sym = false;
  config.desc_act = shape.order == GroupOrder::Shuffled;
  return config;
}

class FormatProperty : public testing::TestWithParam<const char*> {};

TEST_P(FormatProperty, WrittenLinearsReadBackAsTheSameNumbers) {
  std::mt19937 random(11);
  for (int round = 0; round < 25; ++round) {
    const GroupedIntShape shape = random_shape(GetParam(), random);
    weights::RandomGroupedInt made = weights::make_random_grouped_int(shape, random);
    const weights::LinearWeights written = std::move(made.weights);
    const TemporaryFolder folder;
    CheckpointWriter writer(folder / "m");
    writer.add_linear("m", written, GetParam());
    writer.finish({Json{{"quantization_config", make_quantization_config(GetParam(), config_of(shape))}}, {}});

    const auto checkpoint = Checkpoint::open(folder / "m");
    const weights::LinearWeights read = checkpoint->linear("m", {shape.out_features, shape.in_features});
    const auto& a = std::get<GroupedIntWeights>(written);
    const auto& b = std::get<GroupedIntWeights>(read);
    EXPECT_EQ(b.bits, a.bits);
    EXPECT_EQ(b.group_size, a.group_size);
    EXPECT_TRUE(equal(b.codes, a.codes));
    EXPECT_TRUE(equal(b.scales, a.scales));
    EXPECT_TRUE(equal(b.zeros, a.zeros));
    EXPECT_TRUE(equal(b.g_idx, a.g_idx));
    EXPECT_TRUE(equal(weights::dequantize(read), weights::dequantize(written)));
  }
}

TEST_P(FormatProperty, ReadTensorsAreWrittenAsTheSameBytes) {
  std::mt19937 random(12);
  const LinearFormat& format = find_linear_format(GetParam());
  for (int round = 0; round < 25; ++round) {
    const weights::LinearWeights made =
        weights::make_random_grouped_int(random_shape(GetParam(), random), random).weights;
    const auto& grouped = std::get<GroupedIntWeights>(made);
    const std::vector<NamedTensor> first = format.write(made);
    const TemporaryFolder folder;
    CheckpointWriter writer(folder / "m");
    for (const NamedTensor& named : first) writer.add(fmt::format("m.{}", named.suffix), named.tensor);
    QuantizationConfig config;
    config.bits = grouped.bits;
    config.group_size = grouped.group_size;
    config.desc_act = grouped.has_g_idx();
    config.sym = false;
    writer.finish({Json{{"quantization_config", make_quantization_config(GetParam(), config)}}, {}});
    const auto checkpoint = Checkpoint::open(folder / "m");
    const weights::LinearWeights read = checkpoint->linear("m", {grouped.out_features, grouped.in_features});
    const std::vector<NamedTensor> second = format.write(read);
    ASSERT_EQ(second.size(), first.size());
    for (std::size_t i = 0; i < first.size(); ++i)
      EXPECT_TRUE(equal(second[i].tensor, first[i].tensor)) << first[i].suffix;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, FormatProperty, testing::Values("gptq", "gptq_v2", "awq", "compressed-tensors"),
                         [](const auto& parameter) {
                           std::string name = parameter.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

/// Any tensors in any shard size come back; shards stay under their limit.
TEST(CheckpointProperty, TensorsComeBackWhateverTheShardSize) {
  std::mt19937 random(13);
  for (int round = 0; round < 20; ++round) {
    const TemporaryFolder folder;
    const std::int64_t limit = pick({1, 64, 500, 100'000}, random);
    std::vector<std::pair<std::string, Tensor>> tensors;
    CheckpointWriter writer(folder / "m", limit);
    for (int i = 0; i < 20; ++i) {
      const DType dtype = std::vector{DType::F32, DType::F16, DType::U8, DType::I64}[random() % 4];
      const Shape shape{pick({0, 1, 3, 8}, random), pick({1, 5, 16}, random)};
      Tensor tensor = Tensor::empty(dtype, shape);
      auto* bytes = static_cast<std::uint8_t*>(tensor.mutable_view().data());
      std::generate(bytes, bytes + tensor.size_bytes(), [&] { return static_cast<std::uint8_t>(random()); });
      const std::string name = fmt::format("t{}", i);
      writer.add(name, tensor);
      tensors.emplace_back(name, std::move(tensor));
    }
    writer.finish({Json::object(), {}});
    const auto checkpoint = Checkpoint::open(folder / "m");
    EXPECT_EQ(checkpoint->tensor_names().size(), tensors.size());
    EXPECT_EQ(checkpoint->size_bytes(), writer.total_bytes());
    for (const auto& [name, tensor] : tensors) {
      const TensorView read = checkpoint->tensor(name);
      ASSERT_EQ(read.dtype(), tensor.dtype());
      ASSERT_EQ(read.shape(), tensor.shape());
      ASSERT_TRUE(tensor.size_bytes() == 0 || std::memcmp(read.data(), tensor.view().data(), tensor.size_bytes()) == 0);
    }
  }
}

}  // namespace
}  // namespace nibble::formats
