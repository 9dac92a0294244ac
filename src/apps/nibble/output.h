#pragma once

#include <exception>
#include <string_view>

namespace nibble::apps {

/// Standard output was closed by its reader (`nibble … | head`): not an error, the program ends with code 0.
class ClosedOutput : public std::exception {};

/// Writes to standard output at once. Errors: ClosedOutput; Unavailable where it cannot be written (a full disk).
void print(std::string_view text);
/// Flushes what others wrote through stdio or std::cout. Errors: as print.
void flush_output();

}  // namespace nibble::apps
