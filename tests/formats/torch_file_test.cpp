#include "formats/torch_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/expect_error.h"
#include "core/temporary_folder.h"
#include "formats/checkpoint.h"
#include "formats/inspect.h"
#include "formats/pickles.h"
#include "formats/raw_checkpoint.h"
#include "formats/zip_builder.h"

namespace nibble::formats {
namespace {

using pickles::state_dict;
using pickles::tensor;

std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

TensorHeader parse(const std::string& file) {
  return parse_torch_file(std::as_bytes(std::span(file.data(), file.size())));
}

std::string file_of(const std::string& pickle, const std::string& storage = floats({0, 1, 2, 3, 4, 5})) {
  return ZipBuilder().add("m/data.pkl", pickle).add("m/byteorder", "little").add("m/data/0", storage).finish();
}

void expect_refused(ErrorCode code, const std::string& file, const std::string& part) {
  expect_error(code, part, [&] { parse(file); });
}

TEST(TorchFile, FindsTensorsWhereTheyLieInTheArchive) {
  const std::string file =
      file_of(state_dict({{"a", tensor({})}, {"b", tensor({.offset = 2, .sizes = {2}, .strides = {1}})}}));
  const TensorHeader header = parse(file);
  const TensorEntry& a = header.at("a");
  EXPECT_EQ(a.dtype, DType::F32);
  EXPECT_EQ(a.sizes, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(file.substr(a.begin, a.end - a.begin), floats({0, 1, 2, 3, 4, 5}));
  const TensorEntry& b = header.at("b");
  EXPECT_EQ(file.substr(b.begin, b.end - b.begin), floats({2, 3}));
}

TEST(TorchFile, RefusesTensorsOutsideTheirStorage) {
  const auto refuse = [](const pickles::TensorSpec& spec, const std::string& part) {
    expect_refused(ErrorCode::Corrupt, file_of(state_dict({{"a", tensor(spec)}})), part);
  };
  refuse({.sizes = {3, 3}}, "a: takes 9 elements from element 0 of a storage of 6");
  refuse({.offset = 1}, "takes 6 elements from element 1");
  refuse({.offset = -1}, "from element -1");
  refuse({.offset = 7, .sizes = {0}, .strides = {1}}, "from element 7");
  refuse({.sizes = {-2, -3}}, "the size -2");
  refuse({.sizes = {2, 3}, .strides = {1}}, "a stride too many or too few");
  refuse({.sizes = {2147483647, 2147483647, 2147483647}, .strides = {1, 1, 1}}, "a");
  refuse({.key = "1"}, "lacks m/data/1");
  refuse({.type = "DoubleStorage"}, "of a storage of 3");
}

TEST(TorchFile, NamesTensorsThatAreNotContiguousWhenTheyAreRead) {
  const TensorHeader header = parse(file_of(state_dict(
      {{"t", tensor({.sizes = {3, 2}, .strides = {1, 3}})}, {"one", tensor({.sizes = {1, 6}, .strides = {77, 1}})}})));
  EXPECT_NE(header.at("t").fault.find("strides [1, 3]"), std::string::npos);
  EXPECT_EQ(header.at("one").fault, "");
}

TEST(TorchFile, RefusesOtherContainers) {
  const std::string pickle = state_dict({{"a", tensor({})}});
  expect_refused(ErrorCode::Corrupt, "", "no zip archive");
  expect_refused(ErrorCode::Corrupt, "hello", "no zip archive");
  expect_refused(ErrorCode::Unsupported, pickle, "before 1.6");
  expect_refused(ErrorCode::Corrupt, "PK\x03\x04 and nothing else", "no directory at its end");
  expect_refused(ErrorCode::Corrupt, ZipBuilder().add("a/b.txt", "x").finish(), "without data.pkl");
  expect_refused(ErrorCode::Unsupported, ZipBuilder().add("m/data.pkl", pickle, ZipBuilder::kDeflated).finish(),
                 "m/data.pkl is compressed");
  expect_refused(ErrorCode::Unsupported, ZipBuilder().add("m/data.pkl", pickle).add("m/byteorder", "big").finish(),
                 "big-endian");
  expect_refused(ErrorCode::Corrupt, ZipBuilder().add("m/data.pkl", pickle).add("m/data.pkl", pickle).finish(),
                 "twice");
}

TEST(TorchFile, BearsCutAndChangedArchives) {
  const std::string whole = file_of(state_dict({{"a", tensor({})}}));
  constexpr std::size_t kEndRecordBytes = 22;
  for (std::size_t size = 0; size < whole.size() - kEndRecordBytes; ++size) {
    EXPECT_THROW(parse(whole.substr(0, size)), Error) << size;
  }
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const char byte : {'\0', '\x7f', '\xff'}) {
      std::string changed = whole;
      changed[at] = byte;
      try {
        for (const auto& [name, entry] : parse(changed)) EXPECT_LE(entry.end, changed.size());
      } catch (const Error&) {
        continue;
      }
    }
  }
}

std::string words(const std::vector<std::uint32_t>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(std::uint32_t)};
}

TEST(TorchFile, OpensAsACheckpointOfSqueezeLlmWithoutAnyConfigOfIt) {
  std::vector<float> table(16);
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i) / 2;
  const std::string pickle = state_dict(
      {{"m.qweight", tensor({.type = "IntStorage", .key = "0", .storage_size = 1, .sizes = {1, 1}, .strides = {1, 1}})},
       {"m.lookup_table", tensor({.key = "1", .storage_size = 16, .sizes = {1, 16}, .strides = {16, 1}})},
       {"sparse_threshold.m", pickles::integer(0)}});
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("sq-tiny-w4-s0.pt", ZipBuilder()
                                       .add("archive/data.pkl", pickle)
                                       .add("archive/data/0", words({0x76543210}))
                                       .add("archive/data/1", floats(table))
                                       .finish());
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint->quantization().has_value());
  EXPECT_EQ(checkpoint->quantization()->method, "squeezellm");
  EXPECT_EQ(checkpoint->quantization()->bits, 4);
  EXPECT_EQ(summarize(folder.path()).container, "torch.save");
  EXPECT_EQ(dequantized(checkpoint->linear("m", {1, 8})), (std::vector<float>{0, 0.5f, 1, 1.5f, 2, 2.5f, 3, 3.5f}));
}

TEST(TorchFile, ReadsShardsByTheirIndex) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("pytorch_model-00001-of-00002.bin", file_of(state_dict({{"a", tensor({})}})));
  folder.write("pytorch_model-00002-of-00002.bin",
               file_of(state_dict({{"b", tensor({.offset = 1, .sizes = {2}, .strides = {1}})}})));
  folder.write("pytorch_model.bin.index.json",
               R"({"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}})");
  const auto checkpoint = Checkpoint::open(folder.path());
  EXPECT_EQ(checkpoint->tensor_names(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(checkpoint->tensor("b").span<float>()[0], 1);
}

TEST(TorchFile, ErrorsNameFileAndTensor) {
  const TemporaryFolder folder;
  folder.write("config.json", "{}");
  folder.write("pytorch_model.bin", file_of(state_dict({{"t", tensor({.sizes = {3, 2}, .strides = {1, 3}})}})));
  expect_error(ErrorCode::Unsupported, "pytorch_model.bin: t: is stored with strides",
               [&] { Checkpoint::open(folder.path())->tensor("t"); });
  folder.write("pytorch_model.bin", file_of(state_dict({{"x", pickles::global("os", "system")}})));
  expect_error(ErrorCode::Unsupported, "pytorch_model.bin: the pickle names os.system",
               [&] { Checkpoint::open(folder.path()); });
  std::filesystem::remove(folder / "pytorch_model.bin");
  folder.write("a.pt", "PK");
  folder.write("b.pt", "PK");
  expect_error(ErrorCode::NotFound, "2 files of torch.save (a.pt, b.pt", [&] { Checkpoint::open(folder.path()); });
}

}  // namespace
}  // namespace nibble::formats
