#include "tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/error.h"
#include "tokenizer/frozen_unicode.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {
namespace {

utf8proc_category_t category(char32_t code_point) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

/// Whether no character reaches U+0300, the first combining mark: such text is in NFC.
bool is_below_combining_marks(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

bool composes(NormalizationForm form) {
  return form == NormalizationForm::Nfc || form == NormalizationForm::Nfkc;
}

class Normalization {
 public:
  explicit Normalization(NormalizationForm form)
      : form_(form),
        options_(static_cast<utf8proc_option_t>(
            UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
            (form == NormalizationForm::Nfkc || form == NormalizationForm::Nfkd ? UTF8PROC_COMPAT : 0))) {}

  // ASCII characters are in every form and compose with nothing before them, so each begins a run of its own: only
  // runs with other characters are decomposed.
  std::string run(std::string_view text) {
    std::string normalized;
    normalized.reserve(text.size() + text.size() / 8);
    std::size_t run_begin = 0;
    bool has_non_ascii = false;
    for (std::size_t i = 0; i <= text.size(); ++i) {
      const bool is_ascii_or_end = i == text.size() || static_cast<unsigned char>(text[i]) < 0x80;
      if (!is_ascii_or_end) {
        if (!has_non_ascii && i > run_begin + 1) {  // the last ASCII character may carry marks
          normalized.append(text.substr(run_begin, i - 1 - run_begin));
          run_begin = i - 1;
        }
        has_non_ascii = true;
      } else if (has_non_ascii) {
        append_normalized(text.substr(run_begin, i - run_begin), normalized);
        run_begin = i;
        has_non_ascii = false;
      }
    }
    normalized.append(text.substr(std::min(run_begin, text.size())));
    return normalized;
  }

 private:
  void append_normalized(std::string_view run, std::string& normalized) {
    code_points_.reserve(run.size() / 2);
    for (std::size_t at = 0; at < run.size();) {
      const CodePoint code_point = decode_utf8(run, at);
      at += code_point.size_bytes;
      if (is_newer_than_normalization(code_point.value)) {
        flush(normalized);
        append_utf8(normalized, code_point.value);
      } else {
        decompose(code_point.value);
      }
    }
    flush(normalized);
  }

  void decompose(char32_t code_point) {
    constexpr std::size_t kLongestDecomposition = 32;  // U+FDFA has 18
    std::array<utf8proc_int32_t, kLongestDecomposition> parts{};
    int boundary_class = 0;
    const utf8proc_ssize_t num_parts =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point), parts.data(),
                                static_cast<utf8proc_ssize_t>(parts.size()), options_, &boundary_class);
    check(num_parts >= 0 && num_parts <= static_cast<utf8proc_ssize_t>(parts.size()), "a scalar value decomposes");
    code_points_.insert(code_points_.end(), parts.begin(), parts.begin() + num_parts);
  }

  /// Orders, composes and writes what was decomposed.
  void flush(std::string& normalized) {
    order_marks();
    auto size = static_cast<utf8proc_ssize_t>(code_points_.size());
    if (composes(form_)) {
      size = utf8proc_normalize_utf32(code_points_.data(), size,
                                      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
      check(size >= 0, "utf8proc composes decomposed text");
    }
    for (utf8proc_ssize_t i = 0; i < size; ++i) {
      append_utf8(normalized, static_cast<char32_t>(code_points_[static_cast<std::size_t>(i)]));
    }
    code_points_.clear();
  }

  // utf8proc_decompose does this with an insertion sort, which is quadratic on hostile runs of marks.
  void order_marks() {
    const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
    for (auto begin = code_points_.begin(); begin != code_points_.end();) {
      if (combining_class(*begin) == 0) {
        ++begin;
        continue;
      }
      const auto end = std::find_if(begin, code_points_.end(), [&](auto c) { return combining_class(c) == 0; });
      if (end - begin > 1) {
        std::stable_sort(begin, end, [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
      }
      begin = end;
    }
  }

  NormalizationForm form_;
  utf8proc_option_t options_;
  std::vector<utf8proc_int32_t> code_points_;
};

}  // namespace

bool is_white_space(char32_t code_point) {
  if (code_point < 0x80) return code_point == ' ' || (code_point >= '\t' && code_point <= '\r');
  return code_point == 0x85 || code_point == 0xA0 || code_point == 0x1680 ||
         (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 || code_point == 0x2029 ||
         code_point == 0x202F || code_point == 0x205F || code_point == 0x3000;
}

bool is_numeric(char32_t code_point) {
  if (code_point < 0x80) return code_point >= '0' && code_point <= '9';
  const auto kind = category(code_point);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t code_point) {
  if (code_point < 0x80) {
    const auto between = [&](char32_t first, char32_t last) { return code_point >= first && code_point <= last; };
    return between('!', '/') || between(':', '@') || between('[', '`') || between('{', '~');
  }
  const auto kind = category(code_point);
  const bool is_in_category = kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
  return is_in_category != is_newer_than_punctuation(code_point);
}

bool is_word_character(char32_t code_point) {
  switch (category(code_point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
  }
  // Join_Control, and what is alphabetic among the symbols: circled and squared Latin letters.
  return code_point == 0x200C || code_point == 0x200D || (code_point >= 0x24B6 && code_point <= 0x24E9) ||
         (code_point >= 0x1F130 && code_point <= 0x1F149) || (code_point >= 0x1F150 && code_point <= 0x1F169) ||
         (code_point >= 0x1F170 && code_point <= 0x1F189);
}

std::size_t skip_white_space(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    const CodePoint code_point = decode_utf8(text, at);
    if (!is_white_space(code_point.value)) break;
    at += code_point.size_bytes;
  }
  return at;
}

std::size_t skip_white_space_back(std::string_view text, std::size_t begin, std::size_t end) {
  while (end > begin) {
    const CodePoint code_point = decode_utf8_before(text, end);
    if (!is_white_space(code_point.value)) break;
    end -= code_point.size_bytes;
  }
  return end;
}

std::string lower_case(std::string_view text) {
  std::string lower;
  lower.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint code_point = decode_utf8(text, at);
    at += code_point.size_bytes;
    append_utf8(lower, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code_point.value))));
    // The one lower case of two characters: İ becomes i and a dot above.
    if (code_point.value == 0x130) append_utf8(lower, 0x307);
  }
  return lower;
}

std::string normalize(std::string_view text, NormalizationForm form) {
  const bool is_normalized = form == NormalizationForm::Nfc ? is_below_combining_marks(text) : is_ascii(text);
  if (is_normalized) return std::string(text);
  return Normalization(form).run(text);
}

}  // namespace nibble::tokenizer
