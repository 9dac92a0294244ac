#pragma once

#include <string>

#include "core/json.h"

namespace nibble::server::openai {

/// The request's messages as templates expect them: content as one string (text parts joined by newlines, as vLLM does
/// for templates that take strings; null becomes ""), arguments of tool calls as objects. Errors: RequestError naming
/// the message.
Json normalize_messages(const Json& body);

/// "tools": an array of function definitions, or null where there is none. Errors: RequestError, also where
/// "tool_choice" asks for what nibble does not do.
Json checked_tools(const Json& body);

/// "chat_template_kwargs" (and reasoning_effort, which templates read as one of them), or null. Errors: RequestError.
Json checked_template_kwargs(const Json& body);

}  // namespace nibble::server::openai
