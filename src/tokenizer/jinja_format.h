#pragma once

#include <string>
#include <string_view>

#include "tokenizer/jinja_value.h"

/// Python's two ways to format text. Errors: InvalidArgument with Python's reason, or for a conversion not known here.
namespace nibble::tokenizer::jinja {

/// `text % values`: a tuple, a dict for %(name)s, or one value.
std::string format_percent(std::string_view text, const Value& values);
/// `text.format(*positional, **keyword)` with the sandbox's attribute access.
std::string format_braces(std::string_view text, const Arguments& arguments);

}  // namespace nibble::tokenizer::jinja
