#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace nibble {

/// Progress of a long job on stderr, with the time left: one line redrawn on a terminal, plain lines at most
/// every ten seconds elsewhere. One thread at a time calls it.
class Progress {
 public:
  /// `title` as in "Quantizing", `unit` as in "blocks"; `total` > 0.
  Progress(std::string title, std::int64_t total, std::string unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` of `total` units are finished; `detail` is shown at the end of the line.
  void update(std::int64_t done, const std::string& detail = {});

 private:
  using Clock = std::chrono::steady_clock;
  std::string title_;
  std::int64_t total_;
  std::string unit_;
  bool is_terminal_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_drawn_{};
};

/// "4.2 s", "3 min 10 s", "2 h 5 min"
std::string format_duration(double seconds);
/// "512 B", "1.5 KB", "135.2 MB", "13.00 GB" (powers of 1000)
std::string format_bytes(double bytes);

}  // namespace nibble
