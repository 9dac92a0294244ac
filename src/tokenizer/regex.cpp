#include "tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <ctime>
#include <new>

#include "core/error.h"
#include "tokenizer/oniguruma.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {
namespace {

constexpr std::size_t kMaxPatternBytes = 64 * 1024;
// Backtracking steps of one attempt at one place: PCRE2's own default, and some for each byte, since giving back a long
// run (\s*[\r\n]+ over spaces) takes one a character.
constexpr std::size_t kMaxSteps = 10'000'000;
constexpr std::size_t kMaxStepsPerByte = 4;
constexpr std::size_t kJitStackStartBytes = 32 * 1024;
constexpr std::size_t kJitStackMaxBytes = 8 * 1024 * 1024;
// PCRE2 cannot be interrupted, so it searches at most so many places a call, and the time is looked at in between.
constexpr std::size_t kPlacesPerSearch = 256;
constexpr std::int64_t kSearchesPerTimeCheck = 1024;

std::int64_t thread_cpu_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

std::string pcre2_message(int code) {
  PCRE2_UCHAR message[256] = {};
  pcre2_get_error_message(code, message, sizeof message);
  return reinterpret_cast<const char*>(message);
}

}  // namespace

RegexScratch::RegexScratch()
    : match_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      stack_(pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr)) {
  if (match_ == nullptr || context_ == nullptr || stack_ == nullptr) throw std::bad_alloc();
  pcre2_jit_stack_assign(context_, nullptr, stack_);
}

RegexScratch::~RegexScratch() {
  pcre2_match_data_free(match_);
  pcre2_match_context_free(context_);
  pcre2_jit_stack_free(stack_);
}

void RegexScratch::begin(std::size_t size_bytes) {
  deadline_ns_ = thread_cpu_ns() + 5'000'000'000 + static_cast<std::int64_t>(size_bytes) * 2'000;
  num_searches_ = 0;
  pcre2_set_match_limit(
      context_, static_cast<std::uint32_t>(std::min(kMaxSteps + size_bytes * kMaxStepsPerByte, std::size_t{1} << 31)));
}

void Regex::Free::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

Regex::Regex(std::string_view pattern) : Regex(pattern, translate_oniguruma(pattern)) {}

Regex Regex::literal(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (std::string_view("\\^$.[]|()?*+{}#- \t\n\r&~").find(c) != std::string_view::npos) escaped += '\\';
    escaped += c;
  }
  return Regex(text, escaped);
}

Regex::Regex(std::string_view pattern, const std::string& pcre2_pattern) : pattern_(pattern) {
  if (pcre2_pattern.size() > kMaxPatternBytes) {
    throw Error(ErrorCode::Unsupported,
                fmt::format("tokenizer.json: a pattern of {} bytes is too long; at most {} bytes can be read",
                            pcre2_pattern.size(), kMaxPatternBytes));
  }
  int problem = 0;
  PCRE2_SIZE place = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pcre2_pattern.data()), pcre2_pattern.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT,
                            &problem, &place, nullptr));
  if (!code_) {
    throw Error(ErrorCode::Unsupported,
                fmt::format("tokenizer.json: pattern \"{}\" cannot be compiled: {}", pattern_, pcre2_message(problem)));
  }
  // Where the system forbids executable memory, the interpreter of PCRE2 does the same, more slowly.
  is_compiled_to_machine_code_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
}

std::optional<Regex::Match> Regex::find(std::string_view text, std::size_t from, RegexScratch& scratch) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  if (++scratch.num_searches_ % kSearchesPerTimeCheck == 0) check_time(scratch);
  while (true) {
    pcre2_set_offset_limit(scratch.context_, from + kPlacesPerSearch);
    const int result = is_compiled_to_machine_code_
                           ? pcre2_jit_match(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                             scratch.match_, scratch.context_)
                           : pcre2_match(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, scratch.match_,
                                         scratch.context_);
    if (result >= 0) {
      const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(scratch.match_);
      return Match{offsets[0], offsets[1]};
    }
    if (result != PCRE2_ERROR_NOMATCH) {
      throw Error(ErrorCode::InvalidArgument, fmt::format("tokenizer.json: pattern \"{}\" fails on this text: {}",
                                                          pattern_, pcre2_message(result)));
    }
    from += kPlacesPerSearch;
    if (from >= text.size()) return std::nullopt;
    // Back to a character's first byte; searching a few places twice does no harm.
    while ((static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) --from;
    check_time(scratch);
  }
}

void Regex::check_time(RegexScratch& scratch) const {
  if (thread_cpu_ns() <= scratch.deadline_ns_) return;
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("tokenizer.json: pattern \"{}\" takes too long on this text", pattern_));
}

std::size_t Regex::next_character(std::string_view text, std::size_t at) {
  return at + decode_utf8(text, at).size_bytes;
}

}  // namespace nibble::tokenizer
