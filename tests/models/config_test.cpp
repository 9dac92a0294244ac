#include "models/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace nibble::models {
namespace {

Json small_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 64},
          {"intermediate_size", 128},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"vocab_size", 256},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-5},
          {"tie_word_embeddings", true},
          {"torch_dtype", "bfloat16"},
          {"eos_token_id", {2, 5}}};
}

std::string error_of(const Json& config) {
  try {
    parse_model_config(config);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(ModelConfig, ReadsALlamaConfig) {
  const ModelConfig config = parse_model_config(small_config());
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.dtype, DType::BF16);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_THAT(config.eos_token_ids, testing::ElementsAre(2, 5));
  EXPECT_DOUBLE_EQ(config.rope_theta, 10000);
}

TEST(ModelConfig, NamesTheKeyThatIsWrong) {
  const auto with = [](const char* key, Json value) {
    Json config = small_config();
    config[key] = std::move(value);
    return error_of(config);
  };
  EXPECT_THAT(with("hidden_size", 0), testing::HasSubstr("hidden_size"));
  EXPECT_THAT(with("hidden_size", "big"), testing::HasSubstr("hidden_size: expected an integer"));
  EXPECT_THAT(with("num_hidden_layers", 1'000'000'000), testing::HasSubstr("num_hidden_layers"));
  EXPECT_THAT(with("num_attention_heads", 5), testing::HasSubstr("num_key_value_heads"));
  EXPECT_THAT(with("num_key_value_heads", 3), testing::HasSubstr("num_key_value_heads: 3 does not divide"));
  EXPECT_THAT(with("vocab_size", -1), testing::HasSubstr("vocab_size"));
  EXPECT_THAT(with("hidden_act", "gelu"), testing::HasSubstr("hidden_act"));
  EXPECT_THAT(with("torch_dtype", "int8"), testing::HasSubstr("torch_dtype"));
  EXPECT_THAT(with("rope_scaling", Json{{"rope_type", "longrope"}}), testing::HasSubstr("longrope"));
  EXPECT_THAT(with("rope_scaling", Json{{"rope_type", "linear"}, {"factor", 0}}), testing::HasSubstr("rope_scaling"));
  EXPECT_THAT(with("rope_theta", -1), testing::HasSubstr("rope_theta"));
  for (const Json& eps : {Json(0), Json(-1e-5), Json(1e-60), Json(std::nan("")), Json(INFINITY), Json("small")}) {
    EXPECT_THAT(with("rms_norm_eps", eps), testing::HasSubstr("rms_norm_eps"));
  }
  EXPECT_THAT(with("architectures", Json::array()), testing::HasSubstr("architectures"));
  EXPECT_THAT(with("eos_token_id", "</s>"), testing::HasSubstr("eos_token_id"));
  EXPECT_THAT(with("head_dim", 15), testing::HasSubstr("head_dim"));
}

TEST(ModelConfig, NeverLooksAtAutoMap) {
  Json config = small_config();
  config["auto_map"] = {{"AutoModelForCausalLM", "evil.Model"}};
  EXPECT_EQ(error_of(config), "no error");
}

TEST(ModelConfig, ReadsNewerRopeParameters) {
  Json config = small_config();
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500000.0}};
  const ModelConfig parsed = parse_model_config(config);
  EXPECT_DOUBLE_EQ(parsed.rope_theta, 500000);
  EXPECT_FALSE(parsed.rope_scaling.has_value());
}

TEST(Rope, PlainFrequenciesFallGeometrically) {
  const ModelConfig config = parse_model_config(small_config());
  const auto inv_freq = rope_inverse_frequencies(config);
  ASSERT_EQ(inv_freq.size(), 8u);
  for (std::size_t j = 0; j < inv_freq.size(); ++j) {
    EXPECT_FLOAT_EQ(inv_freq[j], static_cast<float>(std::pow(10000.0, -static_cast<double>(j) / 8)));
  }
}

TEST(Rope, Llama3ScalingKeepsShortAndSlowsLongWavelengths) {
  Json json = small_config();
  json["head_dim"] = 128;
  json["rope_theta"] = 500000.0;
  const auto plain = rope_inverse_frequencies(parse_model_config(json));
  json["rope_scaling"] = {{"rope_type", "llama3"},
                          {"factor", 8.0},
                          {"low_freq_factor", 1.0},
                          {"high_freq_factor", 4.0},
                          {"original_max_position_embeddings", 8192}};
  const auto scaled = rope_inverse_frequencies(parse_model_config(json));
  for (std::size_t j = 0; j < plain.size(); ++j) {
    const double wavelength = 2 * std::numbers::pi / plain[j];
    if (wavelength < 8192.0 / 4) {
      EXPECT_FLOAT_EQ(scaled[j], plain[j]);
    }
    if (wavelength > 8192.0) {
      EXPECT_FLOAT_EQ(scaled[j], plain[j] / 8);
    }
    EXPECT_LE(scaled[j], plain[j]);
    EXPECT_GE(scaled[j], plain[j] / 8 * 0.999999f);
  }
}

}  // namespace
}  // namespace nibble::models
