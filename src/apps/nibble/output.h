#pragma once

#include <exception>
#include <string_view>

namespace nibble::apps {

/// Standard output was closed by its reader (`nibble … | head`): not an error, the program ends with code 0.
class ClosedOutput : public std::exception {};

/// Opens /dev/null under those of 0, 1 and 2 that came closed, before anything else opens a file: one that took number
/// 2 would be written into by every message.
void claim_standard_descriptors();

/// Writes to standard error. It has nowhere to say that it cannot.
void print_error(std::string_view text);
/// Writes to standard output at once. Errors: ClosedOutput; Unavailable where it cannot be written (a full disk).
void print(std::string_view text);
/// Flushes what others wrote through stdio or std::cout. Errors: as print.
void flush_output();

}  // namespace nibble::apps
