#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace nibble::tokenizer {

/// Working memory of matching, and the time it may still take. One thread uses it at a time, for any Regex.
class RegexScratch {
 public:
  RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;
  ~RegexScratch();

  /// Begins a text of `size_bytes`: from now, all matches together get 5 s of CPU time and 2 s more a megabyte.
  void begin(std::size_t size_bytes);

 private:
  friend class Regex;

  pcre2_real_match_data_8* match_;
  pcre2_real_match_context_8* context_;
  pcre2_real_jit_stack_8* stack_;
  std::int64_t deadline_ns_ = 0;  // of the thread's CPU clock
  std::int64_t num_searches_ = 0;
};

/// A pattern as `tokenizers` compiles it (Oniguruma, Ruby syntax), run by PCRE2. Immutable, thread-safe.
class Regex {
 public:
  struct Match {
    std::size_t begin = 0;  // bytes
    std::size_t end = 0;
  };

  /// Errors: Unsupported with the pattern, where and why.
  explicit Regex(std::string_view pattern);
  /// Matches exactly `text`.
  static Regex literal(std::string_view text);

  /// First match that begins at or behind `from`; `text` is valid UTF-8.
  /// Errors: InvalidArgument where a pattern backtracks beyond PCRE2's limits or the scratch's time.
  std::optional<Match> find(std::string_view text, std::size_t from, RegexScratch& scratch) const;

  /// All matches from left to right without overlap: visit(Match). An empty match right behind a match does not count.
  template <class Visit>
  void for_each_match(std::string_view text, RegexScratch& scratch, const Visit& visit) const {
    std::size_t from = 0;
    std::optional<std::size_t> previous_end;
    while (const auto match = find(text, from, scratch)) {
      if (match->begin == match->end && match->end == previous_end) {
        if (from == text.size()) return;
        from = next_character(text, from);
        continue;
      }
      visit(*match);
      from = match->end;
      previous_end = from;
    }
  }

  const std::string& pattern() const { return pattern_; }

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  Regex(std::string_view pattern, const std::string& pcre2_pattern);
  static std::size_t next_character(std::string_view text, std::size_t at);
  void check_time(RegexScratch& scratch) const;

  std::string pattern_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
  bool is_compiled_to_machine_code_ = false;
};

}  // namespace nibble::tokenizer
