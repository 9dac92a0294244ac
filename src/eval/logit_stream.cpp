#include "eval/logit_stream.h"

#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "core/error.h"
#include "engine/engine.h"

namespace nibble::eval {

LogitStream::LogitStream(engine::Engine& engine, const std::vector<std::int32_t>& tokens)
    : producer_([this, &engine, &tokens] { produce(engine, tokens); }) {}

LogitStream::~LogitStream() {
  {
    const std::lock_guard lock(mutex_);
    is_abandoned_ = true;
  }
  turn_changed_.notify_all();
}

const engine::LogitTile& LogitStream::next() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  if (!is_finished_) {
    turn_ = Turn::Engine;
    turn_changed_.notify_all();
    turn_changed_.wait(lock, [this] { return turn_ == Turn::Reader; });
  }
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (error_) std::rethrow_exception(error_);
  if (is_finished_) throw Error(ErrorCode::Internal, "the engine scored fewer positions than it was given tokens");
  return tile_;
}

void LogitStream::produce(engine::Engine& engine, const std::vector<std::int32_t>& tokens) {
  {
    std::unique_lock lock(mutex_);
    turn_changed_.wait(lock, [this] { return turn_ == Turn::Engine || is_abandoned_; });
    if (is_abandoned_) return;
  }
  std::exception_ptr error;
  try {
    engine.score(tokens, [this](const engine::LogitTile& tile) { hand_over(tile); });
  } catch (...) {
    error = std::current_exception();  // rethrown to the reader by `next`
  }
  const std::lock_guard lock(mutex_);
  error_ = error;
  is_finished_ = true;
  turn_ = Turn::Reader;
  turn_changed_.notify_all();
}

void LogitStream::hand_over(const engine::LogitTile& tile) {
  std::unique_lock lock(mutex_);
  if (is_abandoned_) return;
  tile_ = tile;
  turn_ = Turn::Reader;
  turn_changed_.notify_all();
  turn_changed_.wait(lock, [this] { return turn_ == Turn::Engine || is_abandoned_; });
}

}  // namespace nibble::eval
