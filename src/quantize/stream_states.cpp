#include "quantize/stream_states.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ranges>

#include "core/crash_point.h"

namespace nibble::quantize {
namespace {

constexpr std::string_view kPrefix = "stream-after-";
// A state is written when this many times its cost has gone by.
constexpr double kCostFactor = 20;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string stream_state_of(const JournalEntry& entry) {
  const auto found =
      std::ranges::find_if(entry.saved_states, [](const std::string& name) { return name.starts_with(kPrefix); });
  return found == entry.saved_states.end() ? std::string() : *found;
}

}  // namespace

bool StreamStates::restore() {
  const auto& entries = journal_.entries();
  for (std::size_t i = entries.size(); i-- > 0;) {
    saved_ = stream_state_of(entries[i]);
    if (saved_.empty() || !journal_.has_state(saved_)) continue;  // a file that was lost: from further back
    journal_.rewind(i + 1);
    restore_(journal_.state_path(saved_));
    return true;
  }
  const auto first = std::ranges::find_if(entries, [](const JournalEntry& entry) { return !entry.block.empty(); });
  journal_.rewind(static_cast<std::size_t>(first - entries.begin()));
  saved_.clear();
  return false;
}

void StreamStates::save_start(const std::string& companion) {
  JournalEntry entry{.saved_states = {companion}};
  save(entry);
  journal_.append(std::move(entry));
}

void StreamStates::save(JournalEntry& entry) {
  const double start = now();
  if (!saved_.empty() && start - last_save_time_ < kCostFactor * last_save_seconds_) return;
  const std::string name = std::string(kPrefix) + (entry.block.empty() ? "start" : entry.block);
  save_(journal_.state_path(name));
  crash_point();
  entry.saved_states.push_back(name);
  if (!saved_.empty()) entry.dropped_states.push_back(saved_);
  saved_ = name;
  last_save_time_ = now();
  last_save_seconds_ = last_save_time_ - start;
}

}  // namespace nibble::quantize
