#include "quantize/excerpts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"

namespace nibble::quantize {
namespace {

/// Text goes on in the middle of a long line; an object of a .jsonl file does not.
std::int64_t longest_line(const MappedFile& file) {
  return std::int64_t{1} << (file.path().extension() == ".jsonl" ? 26 : 20);
}

std::span<const std::byte> bytes_of(const MappedFile& file, std::int64_t begin, std::int64_t end) {
  return file.bytes().subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
}

/// Where the first line begins that begins at `position` or behind it; the first character, where that line is too far.
std::int64_t next_line(const MappedFile& file, std::int64_t position) {
  const auto size = static_cast<std::int64_t>(file.size_bytes());
  if (position <= 0 || position >= size) return std::clamp<std::int64_t>(position, 0, size);
  const auto ahead = bytes_of(file, position - 1, std::min(size, position + longest_line(file)));
  if (const void* newline = std::memchr(ahead.data(), '\n', ahead.size())) {
    return position + (static_cast<const std::byte*>(newline) - ahead.data());
  }
  const auto is_continuation = [&](std::int64_t at) {
    return (file.bytes()[static_cast<std::size_t>(at)] & std::byte{0xc0}) == std::byte{0x80};
  };
  while (position < size && is_continuation(position)) ++position;
  return position;
}

/// Of one file.
std::string digest_of_parts(std::span<const Excerpt> excerpts) {
  const MappedFile file = MappedFile::open(excerpts.front().file);
  Sha256 hash;
  for (const Excerpt& excerpt : excerpts) hash.add(bytes_of(file, excerpt.begin, excerpt.end));
  return hash.hex_digest();
}

}  // namespace

ExcerptOptions excerpt_options(std::int64_t num_samples, std::int64_t seq_len, std::uint64_t seed) {
  constexpr std::int64_t kBytesPerToken = 16;  // three to five in text, more in code with its white space
  return {.max_bytes = std::max(std::int64_t{64} << 20, kBytesPerToken * num_samples * seq_len),
          .excerpt_bytes = std::max(std::int64_t{256} << 10, 4 * kBytesPerToken * seq_len),
          .seed = seed};
}

std::vector<Excerpt> choose_excerpts(std::span<const std::string> files, const ExcerptOptions& options) {
  std::vector<MappedFile> mapped;
  std::vector<std::int64_t> first_pieces;  // of each file, among the pieces of all
  std::int64_t num_bytes = 0;
  std::int64_t num_pieces = 0;
  for (const std::string& file : files) {
    const auto size = static_cast<std::int64_t>(mapped.emplace_back(MappedFile::open(file)).size_bytes());
    first_pieces.push_back(num_pieces);
    num_bytes += size;
    num_pieces += (size + options.excerpt_bytes - 1) / options.excerpt_bytes;
  }
  std::vector<Excerpt> excerpts;
  if (num_bytes <= options.max_bytes) {
    for (const MappedFile& file : mapped) {
      excerpts.push_back({.file = file.path(), .end = static_cast<std::int64_t>(file.size_bytes())});
    }
    return excerpts;
  }
  const std::int64_t count = std::min(num_pieces, std::max<std::int64_t>(1, options.max_bytes / options.excerpt_bytes));
  std::vector<std::int64_t> drawn = draw(num_pieces, count, options.seed);
  std::ranges::sort(drawn);
  for (const std::int64_t piece : drawn) {
    const auto idx = std::ranges::upper_bound(first_pieces, piece) - first_pieces.begin() - 1;
    const MappedFile& file = mapped[static_cast<std::size_t>(idx)];
    const std::int64_t begin = (piece - first_pieces[static_cast<std::size_t>(idx)]) * options.excerpt_bytes;
    Excerpt excerpt{.file = file.path(),
                    .begin = next_line(file, begin),
                    .end = next_line(file, begin + options.excerpt_bytes),
                    .is_whole = false};
    if (excerpt.size_bytes() > 0) excerpts.push_back(std::move(excerpt));  // else a line that began before runs on
  }
  return excerpts;
}

std::string read_excerpt(const Excerpt& excerpt) {
  if (excerpt.is_whole) return read_corpus_file(excerpt.file);
  const MappedFile file = MappedFile::open(excerpt.file);
  if (static_cast<std::int64_t>(file.size_bytes()) < excerpt.end) {
    throw Error(ErrorCode::Corrupt, excerpt.file.string() + ": became shorter while it was read");
  }
  const auto bytes = bytes_of(file, excerpt.begin, excerpt.end);
  return with_unix_line_ends({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

std::string digest_of(std::span<const Excerpt> excerpts) {
  std::string text;
  for (std::size_t first = 0, last = 0; first < excerpts.size(); first = last) {
    const Excerpt& excerpt = excerpts[first];
    last = first + 1;
    while (last < excerpts.size() && !excerpts[last].is_whole && excerpts[last].file == excerpt.file) ++last;
    if (!text.empty()) text += ", ";
    if (excerpt.is_whole) {
      text += "sha256 " + sha256_hex_of_file(excerpt.file);
    } else {
      text +=
          fmt::format("sha256 of {} excerpts {}", last - first, digest_of_parts(excerpts.subspan(first, last - first)));
    }
  }
  return text;
}

std::vector<std::int64_t> draw(std::int64_t num_items, std::int64_t count, std::uint64_t seed) {
  std::vector<std::int64_t> items(static_cast<std::size_t>(num_items));
  std::iota(items.begin(), items.end(), 0);
  std::mt19937_64 random(seed);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto other = i + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(num_items - i));
    std::swap(items[static_cast<std::size_t>(i)], items[static_cast<std::size_t>(other)]);
  }
  items.resize(static_cast<std::size_t>(count));
  return items;
}

}  // namespace nibble::quantize
