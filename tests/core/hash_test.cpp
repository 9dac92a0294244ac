#include "core/hash.h"

#include <gtest/gtest.h>

#include "core/temporary_folder.h"

namespace nibble {
namespace {

// FIPS 180-2, appendix B.
constexpr const char* kOfAbc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr const char* kOfMillionA = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

TEST(Sha256, AgreesWithTheStandardsExamples) {
  EXPECT_EQ(sha256_hex("abc"), kOfAbc);
  Sha256 hash;
  for (int i = 0; i < 1000; ++i) hash.add(std::string(1000, 'a'));
  EXPECT_EQ(hash.hex_digest(), kOfMillionA);
}

TEST(Sha256, OfAFileIsThatOfItsBytes) {
  const TemporaryFolder folder;
  EXPECT_EQ(sha256_hex_of_file(folder.write("a", std::string(1'000'000, 'a'))), kOfMillionA);
  EXPECT_EQ(sha256_hex_of_file(folder.write("empty", "")), sha256_hex(""));
}

}  // namespace
}  // namespace nibble
