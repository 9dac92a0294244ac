#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/block_manager.h"
#include "engine/sequence.h"

namespace nibble::engine {

/// Part of one sequence that a step computes: tokens [first, first + count).
struct ScheduledSequence {
  Sequence* sequence = nullptr;
  std::int64_t first = 0;
  std::int64_t count = 0;
  /// Not negative: `first` is the token that this row of the step before samples, and `count` is 1.
  std::int32_t sampled_row = -1;
  /// The step reaches the sequence's last token: it samples the next one.
  bool samples() const { return sampled_row >= 0 || first + count == sequence->num_tokens(); }
};

struct SchedulerLimits {
  std::int64_t max_num_seqs = 256;
  std::int64_t max_num_batched_tokens = 2048;
};

/// Which sequences a step computes, and how many tokens of each: running ones first (decodes, then unfinished
/// prefills), then waiting ones, up to the token budget (chunked prefill). When KV blocks run out the youngest running
/// sequence gives up its blocks and is computed again later. The engine's thread calls it.
class Scheduler {
 public:
  Scheduler(BlockManager& blocks, SchedulerLimits limits) : blocks_(blocks), limits_(limits) {}

  void add(std::unique_ptr<Sequence> sequence);
  /// The next step's work; KV blocks for it are allocated. Empty when nothing can run.
  std::vector<ScheduledSequence> schedule();
  /// The step behind `launched`, whose tokens are not known yet: one more token of each of its sequences that goes on
  /// in any case but for a stop. Empty where the next step is not all of that: sequences wait to be admitted, prefills
  /// are under way, no KV block is free, or a sequence needs its last token's id to sample (penalties).
  std::vector<ScheduledSequence> schedule_ahead(const std::vector<ScheduledSequence>& launched);
  /// The step is done: its tokens are in the cache. Sequences that finished meanwhile have left it.
  void commit(const std::vector<ScheduledSequence>& scheduled);
  /// Frees the blocks of finished sequences and hands these out.
  std::vector<std::unique_ptr<Sequence>> remove_finished();
  Sequence* find(const std::string& id);
  /// Every sequence, running first.
  std::vector<Sequence*> all();

  std::int64_t num_running() const { return static_cast<std::int64_t>(running_.size()); }
  std::int64_t num_waiting() const { return static_cast<std::int64_t>(waiting_.size()); }
  bool is_idle() const { return running_.empty() && waiting_.empty(); }
  std::int64_t num_preemptions() const { return num_preemptions_; }

 private:
  bool grow(Sequence& sequence, std::int64_t num_tokens);
  void preempt_youngest();
  void release(Sequence& sequence);
  bool admit(Sequence& sequence, std::int64_t budget, ScheduledSequence& scheduled);

  BlockManager& blocks_;
  SchedulerLimits limits_;
  std::vector<std::unique_ptr<Sequence>> running_;  // in order of arrival
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::uint64_t next_arrival_ = 0;
  std::int64_t num_preemptions_ = 0;
};

}  // namespace nibble::engine
