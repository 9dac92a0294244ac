#include <gtest/gtest.h>

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "core/expect_error.h"
#include "core/file.h"
#include "core/temporary_folder.h"
#include "formats/checkpoint.h"

namespace nibble::formats {
namespace {

constexpr std::int64_t kShardBytes = 100;  // three tensors of 32 bytes
constexpr std::size_t kNumTensors = 8;

std::string name_of(std::size_t i) {
  return "tensor." + std::to_string(i) + (i % 2 == 0 ? ".weight" : ".a_longer_suffix");
}

Tensor value_of(std::size_t i) {
  Tensor values = Tensor::empty(DType::F32, {2, 4});
  for (float& value : values.span<float>()) value = static_cast<float>(100 * i) + 0.5f;
  return values;
}

CheckpointFiles files() {
  return {Json{{"model_type", "llama"}}, {{"tokenizer.json", "{}"}}};
}

std::map<std::string, std::string> contents(const std::filesystem::path& folder) {
  std::map<std::string, std::string> texts;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_regular_file()) texts[entry.path().filename()] = read_text_file(entry.path());
  }
  return texts;
}

class WriterResume : public ::testing::Test {
 protected:
  WriterResume() {
    CheckpointWriter writer(folder_ / "whole", kShardBytes);
    for (std::size_t i = 0; i < kNumTensors; ++i) writer.add(name_of(i), value_of(i));
    writer.finish(files());
    std::filesystem::create_directories(scratch_);
  }
  CheckpointWriter resumed(const std::vector<WrittenTensor>& written) const {
    return CheckpointWriter(folder_ / "m", scratch_, written, kShardBytes);
  }
  static void append(std::vector<WrittenTensor>& to, const std::vector<WrittenTensor>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }

  TemporaryFolder folder_;
  std::filesystem::path scratch_ = folder_ / "m/.scratch";
};

TEST_F(WriterResume, AnyNumberOfRunsWriteWhatOneWrites) {
  for (std::size_t first = 0; first <= kNumTensors; ++first) {
    for (std::size_t lost = 0; first + lost <= kNumTensors; ++lost) {
      std::filesystem::remove_all(folder_ / "m");
      std::filesystem::create_directories(scratch_);
      std::vector<WrittenTensor> written;
      {
        CheckpointWriter writer = resumed({});
        for (std::size_t i = 0; i < first; ++i) writer.add(name_of(i), value_of(i));
        append(written, writer.sync());
        for (std::size_t i = first; i < first + lost; ++i) writer.add("lost." + name_of(i), value_of(i));
      }
      CheckpointWriter writer = resumed(written);
      for (std::size_t i = first; i < kNumTensors; ++i) writer.add(name_of(i), value_of(i));
      append(written, writer.sync());
      ASSERT_EQ(written.size(), kNumTensors);
      writer.finish(files());
      EXPECT_EQ(writer.total_bytes(), 32 * static_cast<std::int64_t>(kNumTensors));
      EXPECT_EQ(contents(folder_ / "m"), contents(folder_ / "whole")) << first << " then " << lost << " lost";
    }
  }
}

TEST_F(WriterResume, ARunThatDiedWhileItNamedItsShardsIsFinished) {
  std::vector<WrittenTensor> written;
  {
    CheckpointWriter writer = resumed({});
    for (std::size_t i = 0; i < kNumTensors; ++i) writer.add(name_of(i), value_of(i));
    written = writer.sync();
    writer.finish(files());
  }
  // As if it had died after the first shard of three: the others are back under their scratch names.
  std::filesystem::rename(folder_ / "m/model-00002-of-00003.safetensors", scratch_ / "shard-00002");
  std::filesystem::rename(folder_ / "m/model-00003-of-00003.safetensors", scratch_ / "shard-00003");
  for (const char* name : {"model.safetensors.index.json", "tokenizer.json", "config.json"}) {
    std::filesystem::remove(folder_ / "m" / name);
  }
  CheckpointWriter writer = resumed(written);
  writer.finish(files());
  EXPECT_EQ(contents(folder_ / "m"), contents(folder_ / "whole"));
}

TEST_F(WriterResume, AShardThatLostBytesIsNamed) {
  std::vector<WrittenTensor> written;
  {
    CheckpointWriter writer = resumed({});
    for (std::size_t i = 0; i < kNumTensors; ++i) writer.add(name_of(i), value_of(i));
    written = writer.sync();
  }
  std::filesystem::resize_file(scratch_ / "shard-00002", std::filesystem::file_size(scratch_ / "shard-00002") - 1);
  expect_error(ErrorCode::Corrupt, "shard-00002: holds", [&] { resumed(written); });
  std::filesystem::remove(scratch_ / "shard-00002");
  expect_error(ErrorCode::Corrupt, "shard-00002: is missing", [&] { resumed(written); });
}

}  // namespace
}  // namespace nibble::formats
