#include "formats/checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/expect_error.h"
#include "core/temporary_folder.h"

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
  expect_error(ErrorCode::Unsupported, "save_pretrained", [&] { Checkpoint::open(folder.path()); });
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

}  // namespace
}  // namespace nibble::formats
