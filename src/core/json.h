#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace nibble {

/// JSON that keeps the order of keys, as Python and the peers' files do. Look-up is linear in the number of
/// keys: right for configs and requests. Vocabularies and safetensors headers go through simdjson instead.
using Json = nlohmann::ordered_json;

struct JsonLimits {
  std::size_t max_depth = 256;
  /// Keys of one object; bounds the quadratic cost of ordered objects.
  std::size_t max_object_keys = 20'000;
};

/// Parses text from outside: depth- and size-limited, duplicate keys: the last one wins (as in Python).
/// Errors: InvalidArgument "`source`: line and column, what was expected".
Json parse_json(std::string_view text, std::string_view source, const JsonLimits& limits = {});
/// Errors: as read_text_file and parse_json.
Json read_json_file(const std::filesystem::path& path);
/// Pretty-printed with two spaces and a final newline, atomically.
void write_json_file(const std::filesystem::path& path, const Json& json);

/// Field access with errors that name the key: `get<int64_t>(config, "hidden_size")`.
/// Absent and null are the same. Errors: InvalidArgument for a missing key or another type.
template <class T>
T get(const Json& object, const char* key);
template <class T>
std::optional<T> get_optional(const Json& object, const char* key);
template <class T>
T get_or(const Json& object, const char* key, T fallback) {
  auto value = get_optional<T>(object, key);
  return value ? std::move(*value) : std::move(fallback);
}

// Instantiated for bool, int64_t, double, std::string and std::vector<std::string> in json.cpp.

}  // namespace nibble
