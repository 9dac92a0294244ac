#include "core/mapping_faults.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <string_view>

#include "core/file.h"

namespace nibble {
namespace {

/// One mapped file. A slot is taken by setting `begin`, published by setting `size_bytes`, free when begin is null.
struct Slot {
  std::atomic<const std::byte*> begin{nullptr};
  std::atomic<std::size_t> size_bytes{0};
  std::array<char, 512> path{};
};

// A signal handler can reach only globals. More files than slots cost the name in the message, nothing else.
std::array<Slot, 1024> g_slots;

// Threads fault side by side: the first one writes the line, and ends the process for all.
std::atomic_flag g_is_reported = ATOMIC_FLAG_INIT;

void write_text(std::string_view text) {
  // Nothing can be done about a failed write here; the exit code still tells.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

/// Async-signal-safe: reads atomics, writes, exits.
void on_bus_error(int /*signal*/, siginfo_t* fault, void* /*context*/) {
  const auto* address = static_cast<const std::byte*>(fault->si_addr);
  for (const Slot& slot : g_slots) {
    const std::byte* begin = slot.begin.load(std::memory_order_acquire);
    const std::size_t size = slot.size_bytes.load(std::memory_order_acquire);
    if (begin == nullptr || address < begin || address >= begin + size) continue;
    while (g_is_reported.test_and_set(std::memory_order_relaxed)) ::pause();
    write_text("nibble: error: ");
    write_text(slot.path.data());
    write_text(": the file was truncated or became unreadable while it was in use\n");
    ::_exit(1);
  }
  std::signal(SIGBUS, SIG_DFL);  // not ours: let it end the process the ordinary way
}

}  // namespace

void remember_mapping(std::span<const std::byte> range, const std::string& path) {
  for (Slot& slot : g_slots) {
    const std::byte* expected = nullptr;
    if (!slot.begin.compare_exchange_strong(expected, range.data(), std::memory_order_acq_rel)) continue;
    const std::size_t length = std::min(path.size(), slot.path.size() - 1);
    std::memcpy(slot.path.data(), path.data(), length);
    slot.path[length] = 0;
    slot.size_bytes.store(range.size(), std::memory_order_release);
    return;
  }
}

void forget_mapping(const std::byte* begin) {
  for (Slot& slot : g_slots) {
    if (slot.begin.load(std::memory_order_acquire) != begin) continue;
    slot.size_bytes.store(0, std::memory_order_release);
    slot.begin.store(nullptr, std::memory_order_release);
    return;
  }
}

void report_mapping_faults() {
  struct sigaction action{};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

}  // namespace nibble
