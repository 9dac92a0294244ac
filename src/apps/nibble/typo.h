#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace nibble::apps {

/// The candidate that `word` most likely meant: the smallest edit distance (insert, delete, replace, swap of
/// neighbours), at most a third of the word's length and at least 1. Nothing where none is that close.
std::optional<std::string> closest(std::string_view word, std::span<const std::string> candidates);

}  // namespace nibble::apps
