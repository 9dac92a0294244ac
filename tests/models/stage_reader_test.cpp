#include "models/stage_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "core/expect_error.h"
#include "models/loader.h"
#include "support/tiny_model.h"

namespace nibble::models {
namespace {

/// Linears of the module's name's length bytes; counts those in work and refuses one.
class CountingCheckpoint final : public formats::Checkpoint {
 public:
  explicit CountingCheckpoint(std::string refused = "") : refused_(std::move(refused)) {}

  weights::LinearWeights linear(std::string_view module, const Shape& shape) const override {
    if (module == refused_) throw Error(ErrorCode::Corrupt, std::string(module) + ": refused");
    ++num_read;
    Tensor weight = Tensor::empty(DType::F16, shape);
    std::ranges::fill(weight.span<Half>(), to_half(static_cast<float>(std::hash<std::string_view>{}(module) % 1000)));
    return weights::DenseWeights{std::move(weight)};
  }
  Tensor bias(std::string_view, std::int64_t) const override { return {}; }

  const std::filesystem::path& path() const override { return path_; }
  const Json& config() const override { return config_; }
  const std::optional<formats::QuantizationConfig>& quantization() const override { return quantization_; }
  std::optional<std::string> side_file(std::string_view) const override { return std::nullopt; }
  std::vector<std::string> tensor_names() const override { return {}; }
  bool contains(std::string_view) const override { return true; }
  TensorView tensor(std::string_view) const override { return {}; }
  void drop_pages(std::string_view) const override {}
  void release(std::string_view) const override {}
  std::int64_t size_bytes() const override { return 0; }

  mutable std::atomic<int> num_read{0};

 private:
  std::string refused_;
  std::filesystem::path path_;
  Json config_;
  std::optional<formats::QuantizationConfig> quantization_;
};

std::vector<BlockSpec> make_blocks(int count) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(folder.path());
  const auto checkpoint = make_dummy_checkpoint(folder.path(), 1);
  const ModelConfig config = parse_model_config(checkpoint->config());
  std::vector<BlockSpec> blocks;
  for (int b = 0; b < count; ++b) blocks.push_back(find_architecture(config.architecture).block(config, b));
  return blocks;
}

float first_value(const weights::LinearPart& part) {
  return to_float(std::get<weights::DenseWeights>(part.weights).weight.span<Half>()[0]);
}

TEST(StageReader, HandsOutStagesInOrderHoweverManyThreadsRead) {
  const std::vector<BlockSpec> blocks = make_blocks(12);
  const CountingCheckpoint checkpoint;
  for (const int num_threads : {0, 1, 5}) {
    StageReader reader(checkpoint, blocks, num_threads, 100'000);
    for (const BlockSpec& block : blocks) {
      for (const Stage& stage : block.stages) {
        const auto parts = reader.next();
        ASSERT_EQ(parts.size(), stage.linears.size());
        for (std::size_t i = 0; i < parts.size(); ++i) {
          const std::string module = block.module_name(stage.linears[i]);
          EXPECT_EQ(first_value(parts[i]), static_cast<float>(std::hash<std::string_view>{}(module) % 1000)) << module;
        }
      }
    }
  }
}

TEST(StageReader, ReadsNoFurtherAheadThanItsMemory) {
  const std::vector<BlockSpec> blocks = make_blocks(12);
  const CountingCheckpoint checkpoint;
  StageReader reader(checkpoint, blocks, 4, 1);  // less than any linear
  for (int s = 0; s < 4; ++s) {
    const auto num_taken = static_cast<int>(reader.next().size());
    EXPECT_GT(num_taken, 0);
  }
  // Four stages of seven linears were taken; the fifth, q, k and v, may be in work.
  EXPECT_LE(checkpoint.num_read, 7 + 3);
}

TEST(StageReader, ReportsAFaultAtItsStageAndEndsBeforeTheLastOne) {
  const std::vector<BlockSpec> blocks = make_blocks(3);
  const CountingCheckpoint checkpoint(blocks[1].module_name(blocks[1].stages[0].linears[1]));
  for (const int num_threads : {0, 3}) {
    StageReader reader(checkpoint, blocks, num_threads, 1'000'000);
    for (std::size_t s = 0; s < blocks[0].stages.size(); ++s) EXPECT_FALSE(reader.next().empty());
    expect_error(ErrorCode::Corrupt, "refused", [&] { reader.next(); });
  }
}

}  // namespace
}  // namespace nibble::models
