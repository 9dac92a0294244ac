#pragma once

#include <string_view>

namespace nibble::formats {

/// Whether the regular expression `pattern` matches at the start of `text`, as Python's re.match does. Patterns come
/// from files, so length, steps and memory are bounded: a hostile one cannot hang the load.
/// Errors: InvalidArgument quoting a pattern that does not compile, is too long, or takes too many steps.
bool matches_at_start(std::string_view pattern, std::string_view text);

}  // namespace nibble::formats
