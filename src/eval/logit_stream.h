#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace nibble::eval {

/// Pulls the logit tiles that `Engine::score` pushes, so that several models can be read in lock-step: a model
/// computes its next tile only while `next` waits for it, and its logits are read where the engine has them. Comparing
/// models over a window therefore holds one tile of each and copies none.
///
/// One thread uses a stream; it owns a thread that sits inside `score`. `engine` and `tokens` must outlive it.
/// Destroyed early, it lets `score` run to its end unseen.
class LogitStream {
 public:
  LogitStream(engine::Engine& engine, const std::vector<std::int32_t>& tokens);
  ~LogitStream();
  LogitStream(const LogitStream&) = delete;
  LogitStream& operator=(const LogitStream&) = delete;

  /// The next tile, valid until the next call. Errors: whatever `score` throws; Internal where it ends too early.
  const engine::LogitTile& next();
  /// Seconds that the engine worked for the tiles so far.
  double seconds() const { return seconds_; }

 private:
  enum class Turn : std::uint8_t { Reader, Engine };
  void produce(engine::Engine& engine, const std::vector<std::int32_t>& tokens);
  void hand_over(const engine::LogitTile& tile);

  std::mutex mutex_;
  std::condition_variable turn_changed_;
  Turn turn_ = Turn::Reader;
  bool is_abandoned_ = false;
  bool is_finished_ = false;
  std::exception_ptr error_;
  engine::LogitTile tile_;
  double seconds_ = 0;
  std::jthread producer_;  // last: joins before the members it uses go
};

}  // namespace nibble::eval
