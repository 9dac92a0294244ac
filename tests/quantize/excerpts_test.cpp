#include "quantize/excerpts.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "core/file.h"
#include "core/hash.h"
#include "core/temporary_folder.h"
#include "tokenizer/utf8.h"

namespace nibble::quantize {
namespace {

constexpr ExcerptOptions kSmall = {.max_bytes = 4000, .excerpt_bytes = 500, .seed = 3};

class Excerpts : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& content) {
    write_text_file(folder_ / name, content);
    return (folder_ / name).string();
  }
  /// Lines "0 aaa…", "1 aaa…" of different lengths.
  std::string write_lines(const std::string& name, int num_lines) {
    std::string text;
    for (int i = 0; i < num_lines; ++i)
      text += fmt::format("{} {}\n", i, std::string(static_cast<std::size_t>(i % 90), 'a'));
    return write(name, text);
  }
  TemporaryFolder folder_;
};

TEST_F(Excerpts, FilesWithinTheBoundAreReadWhole) {
  const std::vector<std::string> files = {write("a.txt", std::string(2500, 'a')),
                                          write("b.txt", std::string(1500, 'b'))};
  const auto excerpts = choose_excerpts(files, kSmall);
  ASSERT_EQ(excerpts.size(), 2u);
  EXPECT_TRUE(excerpts[0].is_whole && excerpts[1].is_whole);
  EXPECT_EQ(read_excerpt(excerpts[1]), std::string(1500, 'b'));
  EXPECT_EQ(digest_of(excerpts),
            fmt::format("sha256 {}, sha256 {}", sha256_hex_of_file(files[0]), sha256_hex_of_file(files[1])));
}

TEST_F(Excerpts, OfALongTextAreDistinctWholeLinesFromAllOverIt) {
  const std::vector<std::string> files = {write_lines("a.txt", 2000)};
  const auto size = static_cast<std::int64_t>(std::filesystem::file_size(files[0]));
  const std::string text = read_text_file(files[0]);
  const auto excerpts = choose_excerpts(files, kSmall);
  ASSERT_EQ(excerpts.size(), 8u);
  std::int64_t end = 0;
  for (const Excerpt& excerpt : excerpts) {
    EXPECT_FALSE(excerpt.is_whole);
    EXPECT_GE(excerpt.begin, end);
    EXPECT_GT(excerpt.size_bytes(), 300);
    EXPECT_LT(excerpt.size_bytes(), 700);
    EXPECT_TRUE(excerpt.begin == 0 || text[static_cast<std::size_t>(excerpt.begin) - 1] == '\n');
    EXPECT_EQ(read_excerpt(excerpt).back(), '\n');
    end = excerpt.end;
  }
  EXPECT_LT(excerpts.front().begin, size / 2);
  EXPECT_GT(excerpts.back().end, size / 2);
}

TEST_F(Excerpts, DependOnTheSeed) {
  const std::vector<std::string> files = {write_lines("a.txt", 2000)};
  ExcerptOptions other = kSmall;
  other.seed = 4;
  EXPECT_EQ(digest_of(choose_excerpts(files, kSmall)), digest_of(choose_excerpts(files, kSmall)));
  EXPECT_NE(digest_of(choose_excerpts(files, kSmall)), digest_of(choose_excerpts(files, other)));
}

TEST_F(Excerpts, ComeFromFilesByTheirSizes) {
  const std::vector<std::string> files = {write_lines("small.txt", 20), write_lines("large.txt", 4000),
                                          write("empty.txt", "")};
  std::set<std::string> seen;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    ExcerptOptions options = kSmall;
    options.seed = seed;
    for (const Excerpt& excerpt : choose_excerpts(files, options)) seen.insert(excerpt.file.filename().string());
  }
  EXPECT_EQ(seen, (std::set<std::string>{"large.txt", "small.txt"}));
}

TEST_F(Excerpts, OfAllDrawsTileTheFileWhateverItsLines) {
  // A line longer than a piece belongs to the piece in which it begins.
  const std::vector<std::string> files = {
      write("a.txt", "one\n" + std::string(1700, 'x') + "\ntwo\n" + std::string(600, 'y') + "\nthree")};
  std::set<std::pair<std::int64_t, std::int64_t>> drawn;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    for (const Excerpt& excerpt : choose_excerpts(files, {.max_bytes = 2000, .excerpt_bytes = 400, .seed = seed})) {
      drawn.emplace(excerpt.begin, excerpt.end);
    }
  }
  std::int64_t end = 0;
  for (const auto& [begin, excerpt_end] : drawn) {
    EXPECT_EQ(begin, end);
    end = excerpt_end;
  }
  EXPECT_EQ(end, static_cast<std::int64_t>(std::filesystem::file_size(files[0])));
}

TEST_F(Excerpts, WithoutLinesAreCutBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 10'000'000 / 3; ++i) text += "\u20ac";
  const std::vector<std::string> files = {write("a.txt", text)};
  for (const Excerpt& excerpt : choose_excerpts(files, {.max_bytes = 10'000, .excerpt_bytes = 1000, .seed = 1})) {
    if (excerpt.end == static_cast<std::int64_t>(text.size())) continue;  // the last line ends there, not too far away
    EXPECT_TRUE(tokenizer::is_valid_utf8(read_excerpt(excerpt)));
    EXPECT_NEAR(static_cast<double>(excerpt.size_bytes()), 1000, 3);
  }
}

TEST_F(Excerpts, HaveRoomForTheSamples) {
  const ExcerptOptions usual = excerpt_options(128, 512, 0);
  EXPECT_EQ(usual.max_bytes, 64 << 20);  // so that the WikiText-2 texts are read whole
  const ExcerptOptions large = excerpt_options(1024, 131072, 0);
  EXPECT_GE(large.max_bytes, std::int64_t{16} * 1024 * 131072);
  EXPECT_GE(large.excerpt_bytes, 8 * 131072);
}

}  // namespace
}  // namespace nibble::quantize
