#include "server/openai/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "core/error.h"
#include "server/openai/errors.h"

namespace nibble::server::openai {
namespace {

/// Requests are no configs: few levels, few keys. Objects with many keys cost quadratic time (core/json.h).
constexpr JsonLimits kRequestLimits{.max_depth = 128, .max_object_keys = 4'096};

std::string lower(std::string_view text) {
  std::string lowered(text);
  std::ranges::transform(lowered, lowered.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lowered;
}

bool is_json_type(std::string_view content_type) {
  std::string media_type = lower(content_type.substr(0, content_type.find(';')));
  std::erase_if(media_type, [](char c) { return c == ' ' || c == '\t'; });
  return media_type == "application/json" || (media_type.starts_with("application/") && media_type.ends_with("+json"));
}

}  // namespace

Json parse_body(const HttpRequest& request) {
  const auto content_type = request.header("Content-Type");
  if (content_type && !is_json_type(*content_type)) {
    throw RequestError(415, "Unsupported Media Type", "Only the content type application/json is accepted.");
  }
  const auto encoding = request.header("Content-Encoding");
  if (encoding && lower(*encoding) != "identity") {
    throw RequestError(415, "Unsupported Media Type", "Compressed request bodies are not accepted.");
  }
  Json body;
  try {
    body = parse_json(request.body, "request body", kRequestLimits);
  } catch (const Error& error) {
    throw malformed(error.what());
  }
  if (!body.is_object()) throw malformed(fmt::format("The body must be a JSON object, not {}.", body.type_name()));
  return body;
}

template <class T>
std::optional<T> field(const Json& body, const char* key) {
  try {
    return get_optional<T>(body, key);
  } catch (const Error& error) {
    throw malformed(error.what(), key);
  }
}

template std::optional<bool> field<bool>(const Json&, const char*);
template std::optional<std::int64_t> field<std::int64_t>(const Json&, const char*);
template std::optional<double> field<double>(const Json&, const char*);
template std::optional<std::string> field<std::string>(const Json&, const char*);
template std::optional<std::vector<std::string>> field<std::vector<std::string>>(const Json&, const char*);

std::optional<double> number_in(const Json& body, const char* key, double low, double high) {
  const auto value = field<double>(body, key);
  if (value && !(*value >= low && *value <= high)) {
    throw bad_request(fmt::format("{} must be in [{}, {}], got {}.", key, low, high, *value), key);
  }
  return value;
}

std::optional<std::int64_t> integer_in(const Json& body, const char* key, std::int64_t low, std::int64_t high) {
  const auto value = field<std::int64_t>(body, key);
  if (value && *value < low) throw bad_request(fmt::format("{} must be at least {}, got {}.", key, low, *value), key);
  if (value && *value > high) throw bad_request(fmt::format("{} must be at most {}, got {}.", key, high, *value), key);
  return value;
}

bool is_set(const Json& body, const char* key) {
  const auto found = body.find(key);
  if (found == body.end() || found->is_null()) return false;
  if (found->is_boolean()) return found->get<bool>();
  if (found->is_number()) return found->get<double>() != 0;
  if (found->is_string()) return !found->get_ref<const std::string&>().empty();
  return !found->empty();
}

std::vector<std::int32_t> token_ids(const Json& array, const char* key, std::int64_t vocab_size) {
  std::vector<std::int32_t> ids;
  ids.reserve(array.size());
  for (const Json& element : array) {
    if (!element.is_number_integer()) throw malformed(fmt::format("{}: token ids must be integers.", key), key);
    const bool is_huge = element.is_number_unsigned() && element.get<std::uint64_t>() > INT64_MAX;
    if (is_huge || element.get<std::int64_t>() < 0 || element.get<std::int64_t>() >= vocab_size) {
      throw bad_request(fmt::format("{}: token id {} is out of vocabulary (vocabulary size {}).", key,
                                    excerpt(element.dump()), vocab_size),
                        key);
    }
    ids.push_back(static_cast<std::int32_t>(element.get<std::int64_t>()));
  }
  return ids;
}

std::string excerpt(std::string_view text, std::size_t max_bytes) {
  std::size_t end = std::min(text.size(), max_bytes);
  while (end > 0 && end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  std::string shown;
  for (const char c : text.substr(0, end)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      shown += fmt::format("\\x{:02x}", byte);
    } else {
      shown += c;
    }
  }
  return end < text.size() ? shown + "…" : shown;
}

}  // namespace nibble::server::openai
