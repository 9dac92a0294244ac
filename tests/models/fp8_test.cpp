#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/expect_error.h"
#include "core/file.h"
#include "core/json.h"
#include "models/kv_scales.h"
#include "models/loader.h"
#include "support/tiny_model.h"

namespace nibble::models {
namespace {

/// A checkpoint of scales only, by the part of their name after "model.layers.".
std::unique_ptr<formats::Checkpoint> checkpoint_with(const std::filesystem::path& folder,
                                                     const std::vector<std::pair<std::string, float>>& scales) {
  testing_support::write_tiny_config(folder / "config");
  formats::CheckpointWriter writer(folder / "m");
  for (const auto& [name, scale] : scales) writer.add("model.layers." + name, {&scale, DType::F32, {1}});
  writer.add("other", Tensor::zeros(DType::F32, {2}));
  writer.finish({read_json_file(folder / "config" / "config.json"), {}});
  return formats::Checkpoint::open(folder / "m");
}

std::vector<KvScales> read(const std::vector<std::pair<std::string, float>>& scales) {
  const testing_support::TemporaryFolder folder;
  std::filesystem::create_directory(folder.path() / "config");
  const auto checkpoint = checkpoint_with(folder.path(), scales);
  return read_kv_scales(*checkpoint, parse_model_config(checkpoint->config()));
}

TEST(KvScales, AreReadByEveryNamePeersGiveThem) {
  const std::vector<std::pair<std::string, std::string>> names{
      {"self_attn.k_scale", "self_attn.v_scale"},
      {"self_attn.attn.k_scale", "self_attn.attn.v_scale"},
      {"self_attn.k_proj.k_scale", "self_attn.v_proj.v_scale"},
      {"self_attn.k_proj.output_scale", "self_attn.v_proj.output_scale"}};
  for (const auto& [key, value] : names) {
    const auto scales = read({{"0." + key, 0.5f}, {"0." + value, 0.25f}, {"1." + key, 2}, {"1." + value, 4}});
    ASSERT_EQ(scales.size(), 2u) << key;
    EXPECT_EQ(scales[0].key, 0.5f);
    EXPECT_EQ(scales[0].value, 0.25f);
    EXPECT_EQ(scales[1].key, 2);
    EXPECT_EQ(scales[1].value, 4);
  }
  const auto shared = read({{"0.self_attn.kv_scale", 0.125f}});
  EXPECT_EQ(shared[0].key, 0.125f);
  EXPECT_EQ(shared[0].value, 0.125f);
  EXPECT_EQ(shared[1].key, 1);
}

TEST(KvScales, AreNoneWhereTheCheckpointHasNone) {
  EXPECT_TRUE(read({}).empty());
}

TEST(KvScales, ThatAreNoPositiveNumbersNameTheTensor) {
  for (const float bad :
       {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    expect_error(ErrorCode::Corrupt, "model.layers.1.self_attn.v_scale: found",
                 [&] { read({{"0.self_attn.k_scale", 1}, {"1.self_attn.v_scale", bad}}); });
  }
}

TEST(Loader, QuantizesFloatLinearsToFp8OnTheirWay) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(folder.path());
  const auto checkpoint = make_dummy_checkpoint(folder.path(), 7);
  const auto backend = backend::make_backend("cpu", {.precision = backend::Precision::Exact, .num_threads = 2});
  const auto floats = load_decoder(*checkpoint, *backend);
  const auto rounded = load_decoder(*checkpoint, *backend, {.quantize_to_fp8 = weights::Fp8Granularity::PerChannel});
  // Linears of 2 blocks take one byte less a weight, but four bytes a row for its scale; tables and lm_head stay.
  constexpr std::int64_t kWeights = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128);
  constexpr std::int64_t kRows = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64);
  EXPECT_EQ(floats->weight_bytes() - rounded->weight_bytes(), kWeights - 4 * kRows);
}

TEST(DummyCheckpoint, MakesFp8Weights) {
  const testing_support::TemporaryFolder folder;
  testing_support::write_tiny_config(folder.path(), R"(, "quantization_config": {"quant_method": "fp8"})");
  const auto checkpoint = make_dummy_checkpoint(folder.path(), 1);
  const auto weights = checkpoint->linear("model.layers.0.mlp.up_proj", {128, 64});
  ASSERT_TRUE(std::holds_alternative<weights::Fp8Weights>(weights));
  EXPECT_NO_THROW(weights::validate(weights));
  const Tensor dense = weights::dequantize(weights);
  for (const float value : dense.span<float>()) {
    EXPECT_GE(std::abs(value), 0x1p-6f);
    EXPECT_LT(std::abs(value), 0x1p-5f);
  }
}

}  // namespace
}  // namespace nibble::models
