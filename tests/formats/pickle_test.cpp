#include "formats/pickle.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/expect_error.h"
#include "formats/pickles.h"

namespace nibble::formats {
namespace {

using namespace pickles;

auto read(const std::string& pickle) {
  return read_state_dict(std::as_bytes(std::span(pickle.data(), pickle.size())));
}

void expect_corrupt(const std::string& pickle, const std::string& part) {
  expect_error(ErrorCode::Corrupt, part, [&] { read(pickle); });
}
void expect_unsupported(const std::string& pickle, const std::string& part) {
  expect_error(ErrorCode::Unsupported, part, [&] { read(pickle); });
}

TEST(Pickle, ReadsWhereTheTensorsOfAStateDictLie) {
  const auto tensors = read(state_dict(
      {{"a", tensor({})},
       {"b",
        tensor({.type = "HalfStorage", .key = "17", .storage_size = 9, .offset = 4, .sizes = {5}, .strides = {1}})}}));
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors.at("a").storage_type, "FloatStorage");
  EXPECT_EQ(tensors.at("a").sizes, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(tensors.at("a").strides, (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(tensors.at("b").storage_type, "HalfStorage");
  EXPECT_EQ(tensors.at("b").storage_key, "17");
  EXPECT_EQ(tensors.at("b").storage_size, 9);
  EXPECT_EQ(tensors.at("b").offset, 4);
}

TEST(Pickle, ReadsParametersAndRemembersWhatIsSharedInTheMemo) {
  const std::string parameter = call(global("torch._utils", "_rebuild_parameter"),
                                     {tensor({}), "\x88", call(global("collections", "OrderedDict"), {})});
  // 'q' 0 remembers the first name, 'h' 0 takes it again as the second key would; here as an ignored value.
  const auto tensors = read("\x80\x02}(" + text("p") + "q" + std::string(1, '\0') + parameter + text("again") + "h" +
                            std::string(1, '\0') + "u.");
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors.at("p").storage_key, "0");
}

TEST(Pickle, LeavesOutWhatIsNoTensorAndDropsAttributes) {
  const auto tensors = read("\x80\x02" + call(global("collections", "OrderedDict"), {}) + "(" + text("a") + tensor({}) +
                            text("sparse_threshold.m") + "K\x0c" + text("nested") + "}" + text("list") + "](K\x01Ne" +
                            "u}" + text("_metadata") + "}sb.");
  EXPECT_EQ(tensors.size(), 1u);
}

TEST(Pickle, NamesEveryGlobalThatItDoesNotRun) {
  expect_unsupported("\x80\x02" + call(global("os", "system"), {text("true")}) + ".", "os.system");
  expect_unsupported(state_dict({{"a", call(global("builtins", "eval"), {text("1")})}}), "builtins.eval");
  expect_unsupported(state_dict({{"a", global("torch", "load")}}), "torch.load");
  expect_unsupported(state_dict({{"a", global("torch._utils", "_rebuild_tensor_v2.__globals__")}}), "__globals__");
  expect_unsupported(state_dict({{"a", global("numpy.core.multiarray", "scalar")}}), "numpy.core.multiarray.scalar");
}

TEST(Pickle, RefusesInstructionsThatStateDictsDoNotNeed) {
  for (const char code : {'i', 'o', '\x81', '\x92', '\x93', 'P', '\x82', 'S', '\x95', '\0'}) {
    expect_unsupported(std::string("\x80\x02}") + code + "1.", "none that torch.save writes");
  }
}

TEST(Pickle, RefusesProgramsThatDoNotHoldTogether) {
  expect_corrupt(".", "empty stack");
  expect_corrupt("", "ends early");
  expect_corrupt("}(u", "ends early");
  expect_corrupt("t.", "mark");
  expect_corrupt("}(K\x01u.", "a key without a value");
  expect_corrupt("](s.", "empty stack");
  expect_corrupt("K\x01K\x02K\x03s.", "is a number, not a dict");
  expect_corrupt("h\x05.", "memo entry 5 of 0");
  expect_corrupt("}r\xff\xff\xff\x7f.", "memo entry");
  expect_corrupt("X\xff\xff\xff\xff", "ends early");
  expect_corrupt("\x8a\x09" + std::string(9, '\x01'), "more than 64 bits");
  expect_corrupt("cos\nsystem", "without an end");
  expect_corrupt("K\x01.", "not a dict");
  expect_corrupt(global("torch", "FloatStorage") + ")R.", "cannot be called");
  expect_corrupt(global("torch._utils", "_rebuild_tensor_v2") + ")R.", "fewer than 4");
  expect_corrupt(global("torch._utils", "_rebuild_parameter") + "K\x01\x85R.", "is a number, not a tensor");
  expect_corrupt("K\x01\x85Q.", "no storage");
  expect_corrupt(tuple({text("storage"), text("torch"), text("0"), text("cpu"), integer(1)}) + "Q.", "not a global");
  expect_corrupt(state_dict({{"a", tensor({})}, {"a", tensor({})}}), "a stands there twice");
  expect_corrupt("\x80\x02}(K\x01" + tensor({}) + "u.", "not text");
}

TEST(Pickle, RefusesADictWithoutTensors) {
  expect_unsupported("}.", "no state dict");
  expect_unsupported("}" + text("model") + "}s.", "no state dict");
}

TEST(Pickle, BearsDictsThatHoldThemselves) {
  // d = {}; d['a'] = tensor; d['self'] = d
  const std::string zero(1, '\0');
  const auto tensors = read("}q" + zero + "(" + text("a") + tensor({}) + text("self") + "h" + zero + "u.");
  EXPECT_EQ(tensors.size(), 1u);
}

TEST(Pickle, RefusesEveryBeginningOfAStateDict) {
  const std::string whole = state_dict({{"a", tensor({})}, {"b", tensor({.key = "1"})}});
  EXPECT_NO_THROW(read(whole));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THROW(read(whole.substr(0, size)), Error) << size;
  }
}

}  // namespace
}  // namespace nibble::formats
