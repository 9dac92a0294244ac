#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string_view>
#include <utility>

/// Logging to stderr, one line an event; answers of a subcommand go to stdout. Any thread may log. Control
/// characters in a message are escaped, so outside text cannot forge a line.
namespace nibble::log {

enum class Level : std::uint8_t { Debug, Info, Warning, Error, Off };

void set_level(Level level);
void write(Level level, std::string_view message);

template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::Debug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::Info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::Warning, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::Error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nibble::log
