#pragma once

#include <string>
#include <string_view>

namespace nibble::tokenizer {

/// The PCRE2 spelling (for UTF, UCP and MULTILINE) of a pattern in Oniguruma's Ruby syntax, which `tokenizers` uses.
/// They differ in \s (PCRE2 adds U+180E), \w, \h, (?m), {,n}, {n,m}+ and nested classes; ^ and $ are anchors of lines.
/// Errors: Unsupported for what has no equivalent here. Other syntax errors are left to PCRE2.
std::string translate_oniguruma(std::string_view pattern);

}  // namespace nibble::tokenizer
