#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

/// Which parts of the calibration files are read: all of them where they are small; else parts drawn from all over
/// them, so that a corpus of any size costs about the same time and memory.
namespace nibble::quantize {

/// Whole lines of a file: bytes [begin, end).
struct Excerpt {
  std::filesystem::path file;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool is_whole = true;  // the whole file

  std::int64_t size_bytes() const { return end - begin; }
};

struct ExcerptOptions {
  std::int64_t max_bytes = 0;      // beyond this, files are read in parts
  std::int64_t excerpt_bytes = 0;  // about as long is a part
  std::uint64_t seed = 0;
};

/// Room for the samples several times over: 64 MiB, more where the samples are many or long.
ExcerptOptions excerpt_options(std::int64_t num_samples, std::int64_t seq_len, std::uint64_t seed);

/// Files whose sizes add up to at most max_bytes: each whole. Else excerpts of about max_bytes in all, drawn from the
/// files' pieces without replacement, in the order of the files; the draw depends on the sizes and the seed. An excerpt
/// begins and ends with a line of its file, where lines are shorter than 1 MiB (64 MiB in a .jsonl file); else with a
/// character. Errors: as MappedFile.
std::vector<Excerpt> choose_excerpts(std::span<const std::string> files, const ExcerptOptions& options);

/// Its text, with line ends as read_corpus_file has them.
std::string read_excerpt(const Excerpt& excerpt);

/// "sha256 …" of each file, one behind the other; where it is read in parts, of these, and how many they are.
std::string digest_of(std::span<const Excerpt> excerpts);

/// The first `count` of a random permutation of the numbers below `num_items`. A generator and a shuffle of our own
/// choosing, since the standard's distributions differ between libraries.
std::vector<std::int64_t> draw(std::int64_t num_items, std::int64_t count, std::uint64_t seed);

}  // namespace nibble::quantize
