#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "server/http.h"

namespace nibble::server::openai {

/// The request's JSON object. Errors: RequestError for another content type (415), a compressed body (415), what is no
/// JSON or no object (400).
Json parse_body(const HttpRequest& request);

/// A field of the request; absent and null are the same. Errors: RequestError "Bad Request" naming the field.
template <class T>
std::optional<T> field(const Json& body, const char* key);
template <class T>
T field_or(const Json& body, const char* key, T fallback) {
  return field<T>(body, key).value_or(std::move(fallback));
}
/// As `field`, within [low, high]. Errors: also RequestError "BadRequestError" with the range.
std::optional<double> number_in(const Json& body, const char* key, double low, double high);
std::optional<std::int64_t> integer_in(const Json& body, const char* key, std::int64_t low, std::int64_t high);

/// Whether the field is there with a value that asks for something: not null, false, "", 0, [] or {}.
bool is_set(const Json& body, const char* key);

/// Token ids as they stand in a request. Errors: RequestError naming `key` where an element is no integer or lies
/// outside [0, vocab_size).
std::vector<std::int32_t> token_ids(const Json& array, const char* key, std::int64_t vocab_size);

/// At most `max_bytes` of text, cut at a character, control characters as \x0a, for messages that quote a request.
std::string excerpt(std::string_view text, std::size_t max_bytes = 200);

}  // namespace nibble::server::openai
