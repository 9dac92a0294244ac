#include "core/error.h"

#include <cstdio>
#include <cstdlib>

namespace nibble {

std::string_view name(ErrorCode code) {
  switch (code) {
    case ErrorCode::InvalidArgument: return "InvalidArgument";
    case ErrorCode::NotFound: return "NotFound";
    case ErrorCode::Unsupported: return "Unsupported";
    case ErrorCode::Corrupt: return "Corrupt";
    case ErrorCode::OutOfMemory: return "OutOfMemory";
    case ErrorCode::Unavailable: return "Unavailable";
    case ErrorCode::Internal: return "Internal";
  }
  return "Internal";
}

Error Error::in(std::string_view context) const {
  std::string text;
  text.reserve(context.size() + 2 + text_.size());
  text.append(context).append(": ").append(text_);
  return {code_, std::move(text)};
}

void check(bool condition, const char* promise, std::source_location at) {
  if (condition) [[likely]]
    return;
  std::fprintf(stderr, "nibble: broken promise at %s:%u (%s): %s\n", at.file_name(), at.line(), at.function_name(),
               promise);
  std::abort();
}

}  // namespace nibble
