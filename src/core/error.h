#pragma once

#include <cstdint>
#include <exception>
#include <source_location>
#include <string>
#include <string_view>

namespace nibble {

/// What kind of failure this is. `apps` maps a code to an exit code, `server` to an HTTP status.
enum class ErrorCode : std::uint8_t {
  InvalidArgument,  ///< a flag, a request field or a call is wrong: the caller can fix it
  NotFound,         ///< a file, model or tensor does not exist
  Unsupported,      ///< well-formed, but nibble does not do it; the message says what to do instead
  Corrupt,          ///< a file contradicts its own format
  OutOfMemory,      ///< host or device memory, or KV blocks
  Unavailable,      ///< draining, busy, missing driver: may work later or elsewhere
  Internal,         ///< a bug of ours
};

/// The field's name of a code, for logs: "Corrupt".
std::string_view name(ErrorCode code);

/// The one exception of nibble: a sentence for a person (what is wrong, where, what to do) and a chain of
/// contexts that outer layers add (file, then tensor). `what()` is "file: tensor: sentence".
class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message) : code_(code), text_(std::move(message)) {}

  ErrorCode code() const noexcept { return code_; }
  const char* what() const noexcept override { return text_.c_str(); }

  /// The same error with `context` put in front: `throw error.in(path)`.
  [[nodiscard]] Error in(std::string_view context) const;

 private:
  ErrorCode code_;
  std::string text_;
};

/// Asserts a promise between our own functions; no input from outside may reach a false one. Aborts with
/// `promise` and the place. Active in every build: the cost is a compare outside of inner loops.
void check(bool condition, const char* promise, std::source_location at = std::source_location::current());

}  // namespace nibble
