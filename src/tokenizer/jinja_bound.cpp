#include <fmt/format.h>

#include <algorithm>

#include "tokenizer/jinja_library.h"

namespace nibble::tokenizer::jinja {

Bound::Bound(std::string_view function, Arguments& arguments, std::initializer_list<std::string_view> parameters,
             std::size_t required)
    : function_(function), values_(parameters.size()) {
  if (arguments.positional.size() > parameters.size()) {
    fail(fmt::format("{}() takes at most {} argument(s) ({} given)", function, parameters.size(),
                     arguments.positional.size()));
  }
  std::copy(arguments.positional.begin(), arguments.positional.end(), values_.begin());
  for (const auto& [name, value] : arguments.keyword) {
    const auto* parameter = std::find(parameters.begin(), parameters.end(), std::string_view(name));
    if (parameter == parameters.end())
      fail(fmt::format("{}() got an unexpected keyword argument '{}'", function, name));
    auto& slot = values_[static_cast<std::size_t>(parameter - parameters.begin())];
    if (slot) fail(fmt::format("{}() got multiple values for argument '{}'", function, name));
    slot = value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (!values_[i]) fail(fmt::format("{}() misses its argument {}", function, i + 1));
  }
}

std::int64_t Bound::integer(std::size_t idx, std::int64_t fallback) const {
  if (!has(idx)) return fallback;
  if (const auto whole = values_[idx]->integer()) return *whole;
  if (const auto* missing = values_[idx]->get<Undefined>()) fail(missing->message);
  fail(fmt::format("{}(): '{}' object cannot be interpreted as an integer", function_, type_name(*values_[idx])));
}

std::string Bound::text(std::size_t idx) const {
  const Value given = value(idx);
  if (const std::string* text = given.string()) return *text;
  fail(fmt::format("{}() argument {} must be str, not {}", function_, idx + 1, type_name(given)));
}

}  // namespace nibble::tokenizer::jinja
