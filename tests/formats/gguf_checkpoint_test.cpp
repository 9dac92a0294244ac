#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/expect_error.h"
#include "core/temporary_folder.h"
#include "formats/checkpoint.h"
#include "formats/gguf_builder.h"
#include "formats/import_gguf.h"

namespace nibble::formats {
namespace {

constexpr std::uint64_t kHidden = 32;

std::vector<float> ramp(std::size_t count, float first = 0) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = first + static_cast<float>(i);
  return values;
}

/// One block of Q4_0: scale 0.5, element j has code j % 16.
std::string q4_0_block() {
  std::string block("\x00\x38", 2);
  for (int j = 0; j < 16; ++j) block += static_cast<char>(j | (j << 4));
  return block;
}

/// One block of Q8_0: scale 2, element j is j - 16.
std::string q8_0_block() {
  std::string block("\x00\x40", 2);
  for (int j = 0; j < 32; ++j) block += static_cast<char>(j - 16);
  return block;
}

std::string repeat(const std::string& block, int count) {
  std::string blocks;
  for (int i = 0; i < count; ++i) blocks += block;
  return blocks;
}

/// Hyperparameters and tokenizer of a one-layer model with two heads of 16.
GgufBuilder make_metadata(const std::string& architecture = "llama") {
  GgufBuilder builder;
  const auto key = [&](const char* name) { return architecture + "." + name; };
  builder.string("general.architecture", architecture).u32(key("block_count"), 1);
  builder.u32(key("embedding_length"), kHidden).u32(key("feed_forward_length"), 64).u32(key("context_length"), 128);
  builder.u32(key("attention.head_count"), 2).u32(key("attention.head_count_kv"), 1);
  builder.f32(key("attention.layer_norm_rms_epsilon"), 1e-5f).f32(key("rope.freq_base"), 10000);
  builder.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "smollm");
  builder.strings("tokenizer.ggml.tokens", {"<s>", "a", "b", "ab"}).strings("tokenizer.ggml.merges", {"a b"});
  builder.numbers<std::int32_t>("tokenizer.ggml.token_type", {3, 1, 1, 1});
  builder.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 3);
  return builder;
}

void add_tensors(GgufBuilder& builder) {
  builder.floats("token_embd.weight", {kHidden, 4}, ramp(4 * kHidden))
      .floats("output_norm.weight", {kHidden}, ramp(32));
  builder.floats("blk.0.attn_q.weight", {kHidden, 32}, ramp(32 * kHidden));
  builder.tensor("blk.0.attn_k.weight", {kHidden, 16}, 8, repeat(q8_0_block(), 16));
  builder.tensor("blk.0.attn_v.weight", {kHidden, 16}, 2, repeat(q4_0_block(), 16));
}

std::unique_ptr<Checkpoint> open(const TemporaryFolder& folder, const GgufBuilder& builder) {
  return Checkpoint::open(folder.write("m.gguf", builder.build()));
}

TEST(GgufCheckpoint, MakesTheConfig) {
  const TemporaryFolder folder;
  GgufBuilder builder = make_metadata();
  add_tensors(builder);
  const auto checkpoint = open(folder, builder);
  const Json& config = checkpoint->config();
  EXPECT_EQ(config["architectures"], Json::array({"LlamaForCausalLM"}));
  EXPECT_EQ(config["hidden_size"], 32);
  EXPECT_EQ(config["num_key_value_heads"], 1);
  EXPECT_EQ(config["vocab_size"], 4);
  EXPECT_EQ(config["rms_norm_eps"].dump(), "1e-05");
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_TRUE(config["rope_scaling"].is_null());
  EXPECT_FALSE(config.contains("head_dim"));
  EXPECT_EQ(checkpoint->quantization()->method, "gguf");
  EXPECT_EQ(Json::parse(*checkpoint->side_file("generation_config.json"))["eos_token_id"], 3);
  EXPECT_EQ(checkpoint->side_file("special_tokens_map.json"), std::nullopt);
}

TEST(GgufCheckpoint, TurnsRopeFactorsIntoLlama3Scaling) {
  const TemporaryFolder folder;
  GgufBuilder builder = make_metadata();
  add_tensors(builder);
  builder.floats("rope_freqs.weight", {8}, {1, 1, 1, 2, 4, 8, 32, 32});
  const auto checkpoint = open(folder, builder);
  EXPECT_EQ(checkpoint->config()["rope_scaling"].dump(),
            R"({"rope_type":"llama3","factor":32.0,"low_freq_factor":1.0,"high_freq_factor":4.0,)"
            R"("original_max_position_embeddings":8192})");
  EXPECT_FALSE(checkpoint->contains("rope_freqs.weight"));
}

TEST(GgufCheckpoint, UndoesTheRowOrderOfQAndKForLlamaOnly) {
  for (const bool is_llama : {true, false}) {
    const TemporaryFolder folder;
    GgufBuilder builder = make_metadata(is_llama ? "llama" : "qwen2");
    add_tensors(builder);
    const auto checkpoint = open(folder, builder);
    const TensorView q = checkpoint->tensor("model.layers.0.self_attn.q_proj.weight");
    ASSERT_EQ(q.shape(), Shape({32, 32}));
    // Two heads of 16: rows 0, 1, 2, … of a head in the file are 0, 8, 1, 9, … of Hugging Face's.
    for (std::int64_t head = 0; head < 2; ++head) {
      for (std::int64_t row = 0; row < 16; ++row) {
        const std::int64_t file_row = is_llama ? (row < 8 ? 2 * row : 2 * (row - 8) + 1) : row;
        EXPECT_EQ(q.matrix<float>().row(head * 16 + row)[0], static_cast<float>((head * 16 + file_row) * 32));
      }
    }
  }
}

TEST(GgufCheckpoint, KeepsQ4AndQ8LinearsAsIntegers) {
  const TemporaryFolder folder;
  GgufBuilder builder = make_metadata();
  add_tensors(builder);
  const auto checkpoint = open(folder, builder);
  const weights::LinearWeights k = checkpoint->linear("model.layers.0.self_attn.k_proj", {16, 32});
  EXPECT_EQ(weights::describe(k), "int8 g32 sym");
  const Tensor k_values = weights::dequantize(k);
  EXPECT_EQ(k_values.span<float>()[0], -32);
  EXPECT_EQ(k_values.span<float>()[31], 30);
  const weights::LinearWeights v = checkpoint->linear("model.layers.0.self_attn.v_proj", {16, 32});
  EXPECT_EQ(weights::describe(v), "int4 g32 sym");
  EXPECT_EQ(weights::dequantize(v).span<float>()[0], -4);
  EXPECT_EQ(weights::dequantize(v).span<float>()[31], 3.5f);
  EXPECT_EQ(to_float(checkpoint->tensor("model.layers.0.self_attn.v_proj.weight").span<Half>()[31]), 3.5f);
  expect_error(ErrorCode::Corrupt, "v_proj.weight: expected shape [32, 32], found [16, 32]",
               [&] { checkpoint->linear("model.layers.0.self_attn.v_proj", {32, 32}); });
  expect_error(ErrorCode::NotFound, "no tensor lm_head.weight", [&] { checkpoint->linear("lm_head", {4, 32}); });
}

TEST(GgufCheckpoint, ImportsAsAFolderWithTheSameValues) {
  const TemporaryFolder folder;
  GgufBuilder builder = make_metadata();
  add_tensors(builder);
  const auto gguf = open(folder, builder);
  import_gguf({.gguf = folder / "m.gguf", .output = folder / "hf"});
  const auto imported = Checkpoint::open(folder / "hf");
  EXPECT_EQ(imported->tensor_names(), gguf->tensor_names());
  EXPECT_EQ(imported->config(), gguf->config());
  EXPECT_FALSE(imported->quantization().has_value());
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    EXPECT_EQ(imported->side_file(name), gguf->side_file(name));
  }
  for (const std::string& name : gguf->tensor_names()) {
    const Tensor expected = to_dtype(gguf->tensor(name), DType::F16);
    const TensorView found = imported->tensor(name);
    ASSERT_EQ(found.dtype(), DType::F16);
    EXPECT_EQ(std::memcmp(found.data(), expected.view().data(), expected.size_bytes()), 0) << name;
  }
}

TEST(GgufCheckpoint, ImportRefusesValuesAboveF16AndLeavesNothing) {
  const TemporaryFolder folder;
  GgufBuilder builder = make_metadata();
  add_tensors(builder);
  builder.floats("blk.0.ffn_norm.weight", {1}, {1e6f});
  open(folder, builder);
  expect_error(ErrorCode::Unsupported, "post_attention_layernorm.weight: holds a value that f16 cannot",
               [&] { import_gguf({.gguf = folder / "m.gguf", .output = folder / "hf"}); });
  EXPECT_TRUE(std::filesystem::is_empty(folder / "hf"));
}

TEST(GgufCheckpoint, RefusesWhatItCannotPresent) {
  const TemporaryFolder folder;
  const auto refused = [&](ErrorCode code, const char* part, GgufBuilder builder) {
    expect_error(code, part, [&] { open(folder, builder); });
  };
  refused(ErrorCode::Unsupported, "general.architecture 'mamba' is not imported; nibble knows llama, qwen2",
          make_metadata("mamba"));
  refused(ErrorCode::Corrupt, "token_embd.weight: missing", make_metadata());
  GgufBuilder experts = make_metadata();
  add_tensors(experts.u32("llama.expert_count", 8));
  refused(ErrorCode::Unsupported, "mixture-of-experts", experts);
  GgufBuilder unknown = make_metadata();
  add_tensors(unknown);
  refused(ErrorCode::Unsupported, "blk.1.attn_q.weight: no tensor of this name",
          unknown.floats("blk.1.attn_q.weight", {32, 32}, ramp(1024)));
  GgufBuilder split = make_metadata();
  add_tensors(split.number("split.count", 2, std::uint16_t{3}));
  refused(ErrorCode::Unsupported, "llama-gguf-split --merge", split);
  GgufBuilder odd = make_metadata();
  odd.floats("token_embd.weight", {kHidden, 4}, ramp(4 * kHidden))
      .floats("blk.0.attn_q.weight", {kHidden, 6}, ramp(192));
  refused(ErrorCode::Corrupt, "blk.0.attn_q.weight: 6 rows are not pairs of rows for 2 heads", odd);
  GgufBuilder zero;
  zero.string("general.architecture", "llama").u32("llama.embedding_length", 32).u32("llama.attention.head_count", 0);
  refused(ErrorCode::Corrupt, "llama.attention.head_count: 0 is not a possible size", zero);
  refused(ErrorCode::Unsupported, "'' is not imported", GgufBuilder());
}

TEST(GgufCheckpoint, NamesGitLfsPointers) {
  const TemporaryFolder folder;
  const auto path = folder.write("m.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
  expect_error(ErrorCode::Corrupt, "m.gguf: is a git-lfs pointer", [&] { Checkpoint::open(path); });
}

}  // namespace
}  // namespace nibble::formats
