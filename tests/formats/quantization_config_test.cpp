#include "formats/quantization_config.h"

#include <gtest/gtest.h>

#include "core/expect_error.h"
#include "core/temporary_folder.h"

namespace nibble::formats {
namespace {

TEST(QuantizationConfig, IsAbsentWithoutEvidence) {
  const TemporaryFolder folder;
  EXPECT_EQ(find_quantization_config(Json::object(), folder.path()).has_value(), false);
  EXPECT_EQ(find_quantization_config({{"quantization_config", nullptr}}, folder.path()).has_value(), false);
}

TEST(QuantizationConfig, TakesSideFilesByTheirKeys) {
  const TemporaryFolder gptq;
  gptq.write("quantize_config.json", R"({"bits": 4, "group_size": 128, "desc_act": true, "sym": true})");
  EXPECT_EQ(find_quantization_config(Json::object(), gptq.path())->method, "gptq");
  EXPECT_TRUE(find_quantization_config(Json::object(), gptq.path())->desc_act);
  const TemporaryFolder awq;
  awq.write("quant_config.json", R"({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})");
  EXPECT_EQ(find_quantization_config(Json::object(), awq.path())->method, "awq");
  EXPECT_EQ(find_quantization_config(Json::object(), awq.path())->group_size, 64);
}

TEST(QuantizationConfig, ConfigJsonWinsOverASideFile) {
  const TemporaryFolder folder;
  folder.write("quantize_config.json", R"({"bits": 8, "group_size": 32, "desc_act": true})");
  const Json config{{"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 128}}}};
  testing::internal::CaptureStderr();
  EXPECT_EQ(find_quantization_config(config, folder.path())->bits, 4);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("and wins"));
}

TEST(QuantizationConfig, CountsKernelNamesAsTheirMethod) {
  const TemporaryFolder folder;
  const auto method = [&](const char* name) {
    return find_quantization_config({{"quantization_config", {{"quant_method", name}, {"bits", 4}}}}, folder.path())
        ->method;
  };
  EXPECT_EQ(method("gptq_marlin"), "gptq");
  EXPECT_EQ(method("AWQ_marlin"), "awq");
}

TEST(QuantizationConfig, RefusesMethodsItDoesNotRead) {
  const TemporaryFolder folder;
  expect_error(
      ErrorCode::Unsupported,
      "config.json: quantization_config: quant_method 'bitsandbytes' is not read; nibble reads gptq, awq",
      [&] { find_quantization_config({{"quantization_config", {{"quant_method", "bitsandbytes"}}}}, folder.path()); });
  expect_error(ErrorCode::Unsupported, "cannot tell",
               [&] { find_quantization_config({{"quantization_config", Json::object()}}, folder.path()); });
  expect_error(ErrorCode::InvalidArgument, "expected an object",
               [&] { find_quantization_config({{"quantization_config", "gptq"}}, folder.path()); });
}

TEST(QuantizationConfig, TakesASideFileWithNothingButWbitsForSqueezeLlm) {
  const TemporaryFolder folder;
  folder.write("quant_config.json", R"({"wbits": 3})");
  const auto found = find_quantization_config(Json::object(), folder.path());
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->method, "squeezellm");
  EXPECT_EQ(found->bits, 3);
}

TEST(QuantizationConfig, MakesAwqsKeys) {
  QuantizationConfig config;
  config.group_size = 64;
  config.sym = false;
  EXPECT_EQ(make_quantization_config("awq", config).dump(),
            R"({"quant_method":"awq","bits":4,"group_size":64,"zero_point":true,"version":"gemm",)"
            R"("modules_to_not_convert":null})");
  expect_error(ErrorCode::InvalidArgument, "unknown format 'gguf'; known: gptq, gptq_v2, awq, ",
               [&] { make_quantization_config("gguf", config); });
}

}  // namespace
}  // namespace nibble::formats
