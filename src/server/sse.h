#pragma once

#include <string>

#include "core/json.h"

namespace nibble::server {

inline constexpr const char* kEventStream = "text/event-stream; charset=utf-8";

/// "data: {…}\n\n"
std::string sse_event(const Json& json);
/// The line that ends an OpenAI stream: "data: [DONE]\n\n".
std::string sse_done();
/// Compact JSON text for an answer; bytes that are no UTF-8 become U+FFFD.
std::string dump_json(const Json& json);

}  // namespace nibble::server
