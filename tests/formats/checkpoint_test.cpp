#include "formats/checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/expect_error.h"
#include "core/temporary_folder.h"
#include "formats/safetensors.h"

namespace nibble::formats {
namespace {

Tensor ramp(DType dtype, Shape shape, float first = 0.25f) {
  Tensor values = Tensor::empty(DType::F32, shape);
  float next = first;
  for (float& value : values.span<float>()) value = std::exchange(next, next + 0.5f);
  return to_dtype(values, dtype);
}

bool equal(TensorView a, TensorView b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// A folder with the tensors of `names`, [2, 4] f16 each, all different.
void write_checkpoint(const std::filesystem::path& folder, const std::vector<std::string>& names,
                      std::int64_t max_shard_bytes = 1 << 20) {
  CheckpointWriter writer(folder, max_shard_bytes);
  float first = 1;
  for (const std::string& name : names) writer.add(name, ramp(DType::F16, {2, 4}, first++));
  writer.finish({Json{{"model_type", "llama"}}, {{"tokenizer.json", "{}"}}});
}

TEST(Checkpoint, ReadsBackASingleFile) {
  const TemporaryFolder folder;
  write_checkpoint(folder / "m", {"a.weight", "b.weight"});
  EXPECT_TRUE(std::filesystem::exists(folder / "m/model.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(folder / "m/model.safetensors.index.json"));
  const auto checkpoint = Checkpoint::open(folder / "m");
  EXPECT_EQ(checkpoint->tensor_names(), (std::vector<std::string>{"a.weight", "b.weight"}));
  EXPECT_TRUE(equal(checkpoint->tensor("b.weight"), ramp(DType::F16, {2, 4}, 2)));
  EXPECT_EQ(checkpoint->size_bytes(), 32);
  EXPECT_EQ(checkpoint->side_file("tokenizer.json"), "{}");
  EXPECT_EQ(checkpoint->side_file("generation_config.json"), std::nullopt);
  EXPECT_FALSE(checkpoint->quantization().has_value());
}

TEST(Checkpoint, ReadsBackShardsThroughTheirIndex) {
  const TemporaryFolder folder;
  write_checkpoint(folder / "m", {"a.weight", "b.weight", "c.weight"}, 20);
  EXPECT_TRUE(std::filesystem::exists(folder / "m/model-00003-of-00003.safetensors"));
  const Json index = read_json_file(folder / "m/model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 48);
  EXPECT_EQ(index["weight_map"]["b.weight"], "model-00002-of-00003.safetensors");
  const auto checkpoint = Checkpoint::open(folder / "m");
  EXPECT_TRUE(equal(checkpoint->tensor("c.weight"), ramp(DType::F16, {2, 4}, 3)));
}

TEST(Checkpoint, WriterLeavesNothingUnlessFinished) {
  const TemporaryFolder folder;
  {
    CheckpointWriter writer(folder.path(), 20);
    writer.add("a", ramp(DType::F16, {2, 4}));
    writer.add("b", ramp(DType::F16, {2, 4}));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Checkpoint, WriterRefusesAFolderThatHoldsOne) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  expect_error(ErrorCode::InvalidArgument, "already holds a checkpoint",
               [&] { CheckpointWriter writer(folder.path()); });
}

TEST(Checkpoint, WriterRefusesDuplicatesAndHalfModules) {
  const TemporaryFolder folder;
  CheckpointWriter writer(folder / "m");
  writer.add("m.qweight", ramp(DType::F16, {2, 4}));
  expect_error(ErrorCode::InvalidArgument, "m.qweight is written twice",
               [&] { writer.add("m.qweight", ramp(DType::F16, {2, 4})); });
  expect_error(ErrorCode::InvalidArgument, "m lacks qzeros", [&] { writer.finish({}); });
}

TEST(Checkpoint, WriterRefusesAWeightBesideAQuantizedOne) {
  const TemporaryFolder folder;
  CheckpointWriter writer(folder / "m");
  for (const char* name : {"m.qweight", "m.qzeros", "m.scales", "m.weight"}) writer.add(name, ramp(DType::F16, {2, 4}));
  expect_error(ErrorCode::InvalidArgument, "m has both qweight and weight", [&] { writer.finish({}); });
}

TEST(Checkpoint, WriterNamesTheStructThatAFormatDoesNotHold) {
  const TemporaryFolder folder;
  CheckpointWriter writer(folder / "m");
  const weights::LinearWeights dense = weights::DenseWeights{ramp(DType::F16, {8, 32})};
  for (const std::string format : {"awq", "gptq", "gptq_v2"}) {
    expect_error(ErrorCode::Unsupported, "m: dense F16 cannot be written as '" + format + "'",
                 [&] { writer.add_linear("m", dense, format); });
  }
}

TEST(Checkpoint, GivesDenseLinearsAndChecksTheirShape) {
  const TemporaryFolder folder;
  write_checkpoint(folder / "m", {"q.weight"});
  const auto checkpoint = Checkpoint::open(folder / "m");
  const weights::LinearWeights linear = checkpoint->linear("q", {2, 4});
  EXPECT_EQ(weights::describe(linear), "dense F16");
  expect_error(ErrorCode::Corrupt, "q.weight: expected F16, BF16 or F32 of shape [4, 2], found F16 [2, 4]",
               [&] { checkpoint->linear("q", {4, 2}); });
  expect_error(ErrorCode::NotFound, "neither k.weight nor k.qweight", [&] { checkpoint->linear("k", {2, 4}); });
  expect_error(ErrorCode::NotFound, "no tensor x", [&] { checkpoint->tensor("x"); });
}

TEST(Checkpoint, DropsBiasesOfZeros) {
  const TemporaryFolder folder;
  {
    CheckpointWriter writer(folder / "m");
    writer.add("zero.bias", Tensor::zeros(DType::F16, {4}));
    writer.add("some.bias", ramp(DType::F16, {4}));
    writer.finish({Json::object(), {}});
  }
  const auto checkpoint = Checkpoint::open(folder / "m");
  EXPECT_TRUE(checkpoint->bias("zero", 4).is_empty());
  EXPECT_TRUE(checkpoint->bias("none", 4).is_empty());
  EXPECT_TRUE(equal(checkpoint->bias("some", 4), ramp(DType::F32, {4})));
  expect_error(ErrorCode::Corrupt, "some.bias: expected", [&] { checkpoint->bias("some", 5); });
}

TEST(Checkpoint, RefusesPathsThatAreNoModel) {
  const TemporaryFolder folder;
  expect_error(ErrorCode::NotFound, "no such model", [&] { Checkpoint::open(folder / "absent"); });
  expect_error(ErrorCode::NotFound, "no config.json", [&] { Checkpoint::open(folder.path()); });
  expect_error(ErrorCode::InvalidArgument, "pass the folder",
               [&] { Checkpoint::open(folder.write("notes.txt", "hello")); });
  folder.write("config.json", "{}");
  expect_error(ErrorCode::NotFound, "no safetensors", [&] { Checkpoint::open(folder.path()); });
  folder.write("model.gguf", "GGUF");
  expect_error(ErrorCode::NotFound, "pass the GGUF file itself", [&] { Checkpoint::open(folder.path()); });
  folder.write("pytorch_model.bin", "PK");
  expect_error(ErrorCode::Corrupt, "pytorch_model.bin: broken zip archive", [&] { Checkpoint::open(folder.path()); });
}

TEST(Checkpoint, RefusesBrokenConfigs) {
  const TemporaryFolder folder;
  folder.write("config.json", "{");
  expect_error(ErrorCode::InvalidArgument, "config.json", [&] { Checkpoint::open(folder.path()); });
  folder.write("config.json", "[]");
  expect_error(ErrorCode::InvalidArgument, "expected an object", [&] { Checkpoint::open(folder.path()); });
  std::filesystem::remove(folder / "config.json");
  std::filesystem::create_symlink("config.json", folder / "config.json");
  expect_error(ErrorCode::NotFound, "config.json", [&] { Checkpoint::open(folder.path()); });
  std::filesystem::remove(folder / "config.json");
  std::filesystem::create_directory(folder / "config.json");
  expect_error(ErrorCode::Unsupported, "not a regular file", [&] { Checkpoint::open(folder.path()); });
}

/// Two shards with one tensor each, and an index that says what `weight_map` says.
void write_shards(const TemporaryFolder& folder, const Json& weight_map) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> shards{
      {"1.safetensors", {"a"}}, {"2.safetensors", {"b", "both"}}, {"stale.safetensors", {"a", "both"}}};
  for (const auto& [file, names] : shards) {
    SafetensorsShard shard(folder / file);
    for (const std::string& name : names) shard.add(name, ramp(DType::F16, {2, 4}));
    shard.seal();
    shard.commit_as(folder / file);
  }
  folder.write("config.json", "{}");
  folder.write("model.safetensors.index.json", Json{{"weight_map", weight_map}}.dump());
}

TEST(Checkpoint, TheIndexIsTheTruth) {
  const TemporaryFolder folder;
  write_shards(folder, {{"a", "1.safetensors"}, {"b", "2.safetensors"}});
  EXPECT_EQ(Checkpoint::open(folder.path())->tensor_names(), (std::vector<std::string>{"a", "b"}));
}

TEST(Checkpoint, RefusesIndexesThatContradictTheirShards) {
  const auto refused = [](ErrorCode code, const char* part, const Json& weight_map) {
    const TemporaryFolder folder;
    write_shards(folder, weight_map);
    expect_error(code, part, [&] { Checkpoint::open(folder.path()); });
  };
  refused(ErrorCode::NotFound, "3.safetensors", {{"a", "3.safetensors"}});
  refused(ErrorCode::Corrupt, "1.safetensors should hold c, but does not", {{"c", "1.safetensors"}});
  refused(ErrorCode::Corrupt, "both stands in two shards", {{"both", "2.safetensors"}, {"a", "stale.safetensors"}});
  refused(ErrorCode::Corrupt, "expected a file name in this folder", {{"a", "../1.safetensors"}});
  refused(ErrorCode::Corrupt, "expected a file name in this folder", {{"a", "/etc/passwd"}});
  refused(ErrorCode::Corrupt, "expected a file name in this folder", {{"a", 7}});
  refused(ErrorCode::Corrupt, "weight_map is empty", Json::object());
  refused(ErrorCode::Corrupt, "weight_map", Json::array());
}

TEST(Checkpoint, RefusesIndexesThatAreNotJsonOrNameATensorTwice) {
  const TemporaryFolder folder;
  write_shards(folder, {{"a", "1.safetensors"}});
  folder.write("model.safetensors.index.json", R"({"weight_map":{"a":"1.safetensors","a":"stale.safetensors"}})");
  expect_error(ErrorCode::Corrupt, "a stands there twice", [&] { Checkpoint::open(folder.path()); });
  folder.write("model.safetensors.index.json", "{");
  expect_error(ErrorCode::Corrupt, "index.json: weight_map", [&] { Checkpoint::open(folder.path()); });
}

TEST(Checkpoint, RefusesTruncatedShards) {
  const TemporaryFolder folder;
  write_checkpoint(folder / "m", {"a"});
  const auto path = folder / "m/model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  expect_error(ErrorCode::Corrupt, "model.safetensors: a: data_offsets [0, 16] are outside",
               [&] { Checkpoint::open(folder / "m"); });
  std::filesystem::resize_file(path, 0);
  expect_error(ErrorCode::Corrupt, "model.safetensors: 0 bytes are too few", [&] { Checkpoint::open(folder / "m"); });
}

TEST(Checkpoint, FindsSingleFilesUnderTheNamesOfGptqWriters) {
  const TemporaryFolder folder;
  write_checkpoint(folder / "m", {"a"});
  const auto rename = [&](const char* from, const char* to) {
    std::filesystem::rename(folder / "m" / from, folder / "m" / to);
  };
  rename("model.safetensors", "gptq_model-4bit-128g.safetensors");
  EXPECT_TRUE(Checkpoint::open(folder / "m")->contains("a"));
  write_text_file(folder / "m/other.safetensors", "x");
  EXPECT_TRUE(Checkpoint::open(folder / "m")->contains("a"));
  rename("gptq_model-4bit-128g.safetensors", "custom.safetensors");
  expect_error(ErrorCode::NotFound, "2 safetensors files and no model.safetensors.index.json",
               [&] { Checkpoint::open(folder / "m"); });
  write_text_file(folder / "m/quantize_config.json", R"({"bits": 4, "model_file_base_name": "custom"})");
  EXPECT_TRUE(Checkpoint::open(folder / "m")->contains("a"));
}

TEST(Checkpoint, NamesGitLfsPointersAlsoAmongSideFiles) {
  constexpr std::string_view kPointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
  const TemporaryFolder folder;
  write_checkpoint(folder / "m", {"a"});
  write_text_file(folder / "m/tokenizer.json", kPointer);
  const auto checkpoint = Checkpoint::open(folder / "m");
  expect_error(ErrorCode::Corrupt, "tokenizer.json: is a git-lfs pointer",
               [&] { checkpoint->side_file("tokenizer.json"); });
  write_text_file(folder / "m/model.safetensors", kPointer);
  expect_error(ErrorCode::Corrupt, "git lfs pull", [&] { Checkpoint::open(folder / "m"); });
}

/// A safetensors file with this header and data, in a folder with a config.
void write_raw(const TemporaryFolder& folder, const std::string& header, const std::string& bytes) {
  std::string file(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  folder.write("model.safetensors", file + header + bytes);
  folder.write("config.json", "{}");
}

TEST(Checkpoint, RealignsTensorsOfOldWriters) {
  const TemporaryFolder folder;
  std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  while (header.size() % 4 == 0) header += ' ';
  const float values[2] = {1.5f, -2};
  write_raw(folder, header, {reinterpret_cast<const char*>(values), 8});
  const auto checkpoint = Checkpoint::open(folder.path());
  for (int pass = 0; pass < 2; ++pass) {
    const TensorView tensor = checkpoint->tensor("a");
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.data()) % 4, 0u);
    EXPECT_EQ(tensor.span<float>()[1], -2);
    checkpoint->release("a");
  }
}

TEST(Checkpoint, RefusesOnlyTheTensorsItCannotHold) {
  const TemporaryFolder folder;
  write_raw(folder,
            R"({"mask":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},)"
            R"("deep":{"dtype":"U8","shape":[1,1,1,1,1],"data_offsets":[1,2]},)"
            R"("fine":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
            "abc");
  const auto checkpoint = Checkpoint::open(folder.path());
  expect_error(ErrorCode::Unsupported, "mask: dtype BOOL", [&] { checkpoint->tensor("mask"); });
  expect_error(ErrorCode::Unsupported, "deep: tensor of rank 5", [&] { checkpoint->tensor("deep"); });
  EXPECT_EQ(checkpoint->tensor("fine").span<std::uint8_t>()[0], 'c');
}

TEST(Checkpoint, RefusesQuantizedModulesWithoutAConfig) {
  const TemporaryFolder folder;
  {
    CheckpointWriter writer(folder / "m");
    for (const char* name : {"m.qweight", "m.qzeros", "m.scales"}) writer.add(name, ramp(DType::F16, {2, 4}));
    writer.finish({Json::object(), {}});
  }
  const auto checkpoint = Checkpoint::open(folder / "m");
  expect_error(ErrorCode::Corrupt, "m is quantized, but neither config.json", [&] { checkpoint->linear("m", {2, 4}); });
}

TEST(Checkpoint, WriterRefusesFloatsThatF16CannotHold) {
  const TemporaryFolder folder;
  CheckpointWriter writer(folder / "m");
  for (const float bad : {1e6f, NAN}) {
    Tensor weight = ramp(DType::F32, {2, 4});
    weight.span<float>()[3] = bad;
    const weights::LinearWeights dense = weights::DenseWeights{std::move(weight)};
    expect_error(ErrorCode::Unsupported, "lm_head: weight: a value is NaN",
                 [&] { writer.add_linear("lm_head", dense, "dense"); });
  }
}

}  // namespace
}  // namespace nibble::formats
