#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace nibble::engine {

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  sequence->arrival = next_arrival_++;
  waiting_.push_back(std::move(sequence));
}

std::vector<ScheduledSequence> Scheduler::schedule() {
  std::vector<ScheduledSequence> scheduled;
  std::int64_t budget = limits_.max_num_batched_tokens;
  const std::int64_t preemptions_before = num_preemptions_;
  for (std::size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Sequence& sequence = *running_[i];
    const std::int64_t count = std::min(sequence.num_tokens() - sequence.num_computed, budget);
    bool fits = grow(sequence, sequence.num_computed + count);
    while (!fits && running_.size() > i + 1) {
      preempt_youngest();
      fits = grow(sequence, sequence.num_computed + count);
    }
    if (!fits) {  // the youngest itself: it waits for the older ones
      preempt_youngest();
      break;
    }
    scheduled.push_back({&sequence, sequence.num_computed, count});
    budget -= count;
  }
  if (num_preemptions_ > preemptions_before) return scheduled;  // no room: admit nobody now
  while (!waiting_.empty() && budget > 0 && num_running() < limits_.max_num_seqs) {
    ScheduledSequence next;
    if (!admit(*waiting_.front(), budget, next)) break;
    budget -= next.count;
    scheduled.push_back(next);
    const auto place = std::ranges::upper_bound(running_, next.sequence->arrival, {},
                                                [](const auto& running) { return running->arrival; });
    running_.insert(place, std::move(waiting_.front()));
    waiting_.pop_front();
  }
  return scheduled;
}

std::vector<ScheduledSequence> Scheduler::schedule_ahead(const std::vector<ScheduledSequence>& launched) {
  if (!waiting_.empty() && num_running() < limits_.max_num_seqs) return {};
  std::vector<ScheduledSequence> ahead;
  std::int64_t num_going_on = 0;
  std::int32_t row = 0;
  for (const ScheduledSequence& part : launched) {
    Sequence& sequence = *part.sequence;
    if (!part.samples()) return {};
    const std::int32_t sampled_row = row++;
    if (sequence.is_finished()) continue;
    ++num_going_on;
    if (sequence.needs_last_token()) return {};
    if (!sequence.ends_with_next_token()) ahead.push_back({&sequence, sequence.num_tokens(), 1, sampled_row});
  }
  if (num_going_on != num_running()) return {};
  for (const ScheduledSequence& part : ahead) {
    if (!grow(*part.sequence, part.first + 1)) return {};
  }
  return ahead;
}

void Scheduler::commit(const std::vector<ScheduledSequence>& scheduled) {
  const std::int64_t block_size = blocks_.block_size();
  for (const ScheduledSequence& part : scheduled) {
    Sequence& sequence = *part.sequence;
    if (sequence.is_finished()) continue;
    sequence.num_computed = part.first + part.count;
    for (; (sequence.num_registered + 1) * block_size <= sequence.num_computed; ++sequence.num_registered) {
      blocks_.register_full_block(sequence.blocks, sequence.num_registered, sequence.tokens());
    }
  }
}

std::vector<std::unique_ptr<Sequence>> Scheduler::remove_finished() {
  std::vector<std::unique_ptr<Sequence>> finished;
  const auto take = [&](auto& sequences) {
    for (auto& sequence : sequences) {
      if (!sequence->is_finished()) continue;
      release(*sequence);
      finished.push_back(std::move(sequence));
    }
    std::erase(sequences, nullptr);
  };
  take(running_);
  take(waiting_);
  return finished;
}

Sequence* Scheduler::find(const std::string& id) {
  for (Sequence* sequence : all()) {
    if (sequence->id() == id) return sequence;
  }
  return nullptr;
}

std::vector<Sequence*> Scheduler::all() {
  std::vector<Sequence*> sequences;
  for (auto& sequence : running_) sequences.push_back(sequence.get());
  for (auto& sequence : waiting_) sequences.push_back(sequence.get());
  return sequences;
}

/// Blocks for the first `num_tokens` tokens; all or nothing.
bool Scheduler::grow(Sequence& sequence, std::int64_t num_tokens) {
  const std::int64_t needed = (num_tokens + blocks_.block_size() - 1) / blocks_.block_size() -
                              static_cast<std::int64_t>(sequence.blocks.size());
  if (needed > blocks_.num_available()) return false;
  for (std::int64_t i = 0; i < needed; ++i) sequence.blocks.push_back(*blocks_.allocate());
  return true;
}

/// Sequences run in order of arrival, so the youngest is the last and has not been scheduled yet when an older one
/// wants its blocks. Submission checks that one sequence alone always fits: the oldest makes progress.
void Scheduler::preempt_youngest() {
  check(running_.size() > 1, "the oldest sequence fits the KV pool");
  release(*running_.back());
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  ++num_preemptions_;
}

void Scheduler::release(Sequence& sequence) {
  blocks_.release(sequence.blocks);
  sequence.blocks.clear();
  sequence.num_computed = 0;
  sequence.num_registered = 0;
}

bool Scheduler::admit(Sequence& sequence, std::int64_t budget, ScheduledSequence& scheduled) {
  // At least one token must be computed, else there are no logits to sample from; prompt log-probabilities need all.
  const std::int64_t reusable =
      sequence.wants_prompt_logprobs() ? 0 : (sequence.num_tokens() - 1) / blocks_.block_size();
  sequence.blocks = blocks_.match_prefix(sequence.tokens(), reusable);
  const auto matched = static_cast<std::int64_t>(sequence.blocks.size());
  sequence.num_computed = matched * blocks_.block_size();
  sequence.num_registered = matched;
  const std::int64_t count = std::min(sequence.num_tokens() - sequence.num_computed, budget);
  if (!grow(sequence, sequence.num_computed + count)) {
    release(sequence);
    return false;
  }
  if (sequence.num_output_tokens() == 0) sequence.num_cached = sequence.num_computed;
  scheduled = {&sequence, sequence.num_computed, count};
  return true;
}

}  // namespace nibble::engine
