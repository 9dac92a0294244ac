#include "core/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace nibble {

Progress::Progress(std::string title, std::int64_t total, std::string unit)
    : title_(std::move(title)), total_(total), unit_(std::move(unit)), is_terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (is_terminal_ && last_drawn_ != Clock::time_point{}) std::fputs("\n", stderr);
}

void Progress::update(std::int64_t done, const std::string& detail) {
  const auto now = Clock::now();
  const auto interval = is_terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(10'000);
  if (done < total_ && last_drawn_ != Clock::time_point{} && now - last_drawn_ < interval) return;
  last_drawn_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double left = done > 0 ? elapsed * static_cast<double>(total_ - done) / static_cast<double>(done) : 0;
  std::string line = fmt::format("{} {}/{} {}", title_, done, total_, unit_);
  line += done >= total_ ? fmt::format(" in {}", format_duration(elapsed))
          : done > 0     ? fmt::format(", {} left", format_duration(left))
                         : "";
  if (!detail.empty()) line += "  " + detail;
  const std::string text = fmt::format("{}{}{}", is_terminal_ ? "\r\x1b[K" : "", line, is_terminal_ ? "" : "\n");
  std::fwrite(text.data(), 1, text.size(), stderr);  // fmt::print would throw where stderr is full or closed
  std::fflush(stderr);
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  if (whole < 3600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string format_bytes(double bytes) {
  if (bytes < 1e3) return fmt::format("{:.0f} B", bytes);
  if (bytes < 1e6) return fmt::format("{:.1f} KB", bytes / 1e3);
  if (bytes < 1e9) return fmt::format("{:.1f} MB", bytes / 1e6);
  return fmt::format("{:.2f} GB", bytes / 1e9);
}

}  // namespace nibble
