#include "formats/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <cstdint>
#include <memory>

#include "core/error.h"

namespace nibble::formats {
namespace {

constexpr std::size_t kMaxPatternBytes = 4096;  // vLLM's longest is a few hundred
constexpr std::uint32_t kMaxSteps = 100'000;
constexpr std::uint32_t kMaxHeapKilobytes = 1024;

struct FreeRegex {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

PCRE2_SPTR units(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

}  // namespace

bool matches_at_start(std::string_view pattern, std::string_view text) {
  if (pattern.size() > kMaxPatternBytes) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("'{}…' is {} bytes long; a regular expression may have {}",
                                                        pattern.substr(0, 32), pattern.size(), kMaxPatternBytes));
  }
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  const std::unique_ptr<pcre2_code, FreeRegex> code(
      pcre2_compile(units(pattern), pattern.size(), PCRE2_ANCHORED | PCRE2_UTF, &error, &error_offset, nullptr));
  if (code == nullptr) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("'{}' is not a valid regular expression", pattern));
  }
  const std::unique_ptr<pcre2_match_data, FreeRegex> match(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeRegex> context(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(context.get(), kMaxSteps);
  pcre2_set_heap_limit(context.get(), kMaxHeapKilobytes);
  const int matched = pcre2_match(code.get(), units(text), text.size(), 0, 0, match.get(), context.get());
  if (matched < 0 && matched != PCRE2_ERROR_NOMATCH) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("'{}' takes too many steps to match", pattern));
  }
  return matched >= 0;
}

}  // namespace nibble::formats
