#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "backend/host_sampling.h"
#include "core/log.h"
#include "engine/block_manager.h"
#include "engine/loaded_model.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step.h"

namespace nibble::engine {
namespace {

constexpr std::int64_t kScoreTileRows = 64;  // logits of a tile stay in the last-level cache

struct ScoreJob {
  const std::vector<std::int32_t>* tokens;
  const std::function<void(const LogitTile&)>* sink;
  std::promise<void> done;
};

/// What other threads leave for the engine's thread.
struct Inbox {
  std::vector<Request> requests;
  std::vector<std::string> cancelled;
  std::deque<ScoreJob> score_jobs;
  bool aborts_all = false;
  bool stops = false;

  bool is_empty() const { return requests.empty() && cancelled.empty() && score_jobs.empty() && !aborts_all && !stops; }
};

/// A step from its launch until it is collected: all of it stays in place.
struct Step {
  explicit Step(std::int32_t block_size) : inputs(block_size) {}

  std::vector<ScheduledSequence> parts;
  StepBatch inputs;
  backend::ForwardBatch batch;                      // its view
  std::vector<Sequence*> sampling;                  // whose next tokens it samples
  std::vector<backend::SamplingRow> rows;           // how
  std::vector<backend::SampledToken> sampled;       // what comes out
  bool has_samples = false;                         // and the backend has not been asked for it
  std::vector<std::unique_ptr<Sequence>> finished;  // that parts may name
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(LoadedModel model, const EngineOptions& options)
      : model_(std::move(model)),
        blocks_(model_.cache->num_blocks(), model_.cache->block_size(), options.enable_prefix_caching),
        scheduler_(blocks_, {options.max_num_seqs, options.max_num_batched_tokens}),
        async_scheduling_(options.async_scheduling),
        seeds_(options.seed != 0 ? options.seed : std::random_device{}()) {
    stats_.num_kv_blocks = stats_.num_free_kv_blocks = blocks_.num_blocks();
    thread_ = std::thread([this] { run(); });
  }

  ~EngineImpl() override {
    {
      const std::scoped_lock lock(mutex_);
      inbox_.stops = true;
    }
    work_.notify_one();
    thread_.join();
  }

  const models::ModelConfig& config() const override { return model_.decoder->config(); }
  const tokenizer::Tokenizer& tokenizer() const override { return *model_.tokenizer; }
  const Json& generation_config() const override { return model_.generation_config; }
  const Json& tokenizer_config() const override { return model_.tokenizer_config; }
  std::string chat_template_jinja() const override { return model_.chat_template_jinja; }
  std::int64_t max_model_len() const override { return model_.max_model_len; }
  std::int64_t weight_bytes() const override { return model_.decoder->weight_bytes(); }
  std::int64_t checkpoint_bytes() const override { return model_.checkpoint->size_bytes(); }
  std::string description() const override { return model_.description; }

  void submit(Request request) override {
    check_prompt(request.prompt, 1);
    check_params(request.params);
    {
      const std::scoped_lock lock(mutex_);
      if (failure_) throw Error(ErrorCode::Unavailable, *failure_);
      if (is_draining_) throw Error(ErrorCode::Unavailable, "the server is shutting down");
      inbox_.requests.push_back(std::move(request));
      ++stats_.num_waiting;
    }
    work_.notify_one();
  }

  void cancel(const std::string& id) override {
    {
      const std::scoped_lock lock(mutex_);
      inbox_.cancelled.push_back(id);
    }
    work_.notify_one();
  }

  void drain(double timeout_seconds) override {
    std::unique_lock lock(mutex_);
    is_draining_ = true;
    const auto is_quiet = [&] { return stats_.num_running + stats_.num_waiting == 0 && inbox_.is_empty(); };
    if (idle_.wait_for(lock, std::chrono::duration<double>(timeout_seconds), is_quiet)) return;
    inbox_.aborts_all = true;
    work_.notify_one();
    idle_.wait(lock, is_quiet);
  }

  EngineStats stats() const override {
    const std::scoped_lock lock(mutex_);
    return stats_;
  }

  std::optional<std::string> failure() const override {
    const std::scoped_lock lock(mutex_);
    return failure_;
  }

  void set_on_failure(std::function<void()> on_failure) override {
    const std::scoped_lock lock(mutex_);
    on_failure_ = std::move(on_failure);
  }

  void score(const std::vector<std::int32_t>& tokens, const std::function<void(const LogitTile&)>& sink) override {
    check_prompt(tokens, 0);
    std::future<void> done;
    {
      const std::scoped_lock lock(mutex_);
      inbox_.score_jobs.push_back({&tokens, &sink, {}});
      done = inbox_.score_jobs.back().done.get_future();
    }
    work_.notify_one();
    done.get();
  }

 private:
  // ── Checks on the caller's thread ──────────────────────────────────────────────────────────────────────────

  /// `room` tokens must still fit behind the prompt.
  void check_prompt(const std::vector<std::int32_t>& prompt, std::int64_t room) const {
    if (prompt.empty()) throw Error(ErrorCode::InvalidArgument, "prompt: must not be empty");
    if (static_cast<std::int64_t>(prompt.size()) + room > model_.max_model_len) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("This model's maximum context length is {} tokens. However, you requested {} tokens in "
                              "the prompt; shorten it",
                              model_.max_model_len, prompt.size()));
    }
    check_token_ids(prompt, "prompt");
  }

  void check_params(const SamplingParams& params) const {
    check_token_ids(params.stop_token_ids, "stop_token_ids");
    for (const auto& [token, bias] : params.logit_bias) check_token_ids({token}, "logit_bias");
    if (params.max_tokens < 1) throw Error(ErrorCode::InvalidArgument, "max_tokens: must be at least 1");
    if (std::ranges::any_of(params.stop, &std::string::empty)) {
      throw Error(ErrorCode::InvalidArgument, "stop: a stop string must not be empty");
    }
  }

  void check_token_ids(const std::vector<std::int32_t>& ids, const char* field) const {
    for (const std::int32_t id : ids) {
      if (id < 0 || id >= config().vocab_size) {
        throw Error(ErrorCode::InvalidArgument,
                    fmt::format("{}: token id {} is out of vocabulary (0…{})", field, id, config().vocab_size - 1));
      }
    }
  }

  // ── The engine's thread ────────────────────────────────────────────────────────────────────────────────────

  void run() {
    while (true) {
      Inbox inbox = take_inbox();
      accept(inbox);
      if (inbox.stops) {
        abandon_steps("the engine is shutting down", ErrorCode::Unavailable);
        return;
      }
      if (in_flight_.empty()) run_score_jobs();
      step();
      publish_stats();
    }
  }

  Inbox take_inbox() {
    std::unique_lock lock(mutex_);
    work_.wait(lock, [&] {
      return !inbox_.is_empty() || !scheduler_.is_idle() || !score_jobs_.empty() || !in_flight_.empty();
    });
    return std::exchange(inbox_, {});
  }

  void accept(Inbox& inbox) {
    for (Request& request : inbox.requests) {
      scheduler_.add(std::make_unique<Sequence>(std::move(request), *model_.tokenizer, seeds_(), model_.eos_token_ids,
                                                model_.max_model_len));
    }
    if (const auto lost = failure()) give_up(*lost);  // what was submitted meanwhile
    for (const std::string& id : inbox.cancelled) {
      if (Sequence* sequence = scheduler_.find(id)) sequence->finish(FinishReason::Abort);
    }
    if (inbox.aborts_all || inbox.stops) {
      for (Sequence* sequence : scheduler_.all()) sequence->finish(FinishReason::Abort);
    }
    remove_finished();
    std::ranges::move(inbox.score_jobs, std::back_inserter(score_jobs_));
    if (inbox.stops) {
      for (ScoreJob& job : score_jobs_) {
        job.done.set_exception(std::make_exception_ptr(Error(ErrorCode::Unavailable, "the engine is shutting down")));
      }
      score_jobs_.clear();
    }
  }

  /// Collects one step. Where the next one follows from it whatever its tokens turn out to be, that one is launched
  /// before: the device works while the host looks at the tokens.
  void step() {
    try {
      if (in_flight_.empty()) launch(scheduler_.schedule());
      if (in_flight_.empty()) return;
      if (may_launch_ahead()) launch(scheduler_.schedule_ahead(in_flight_.front()->parts));
      collect();
    } catch (const std::exception& error) {
      log::error("step failed: {}", error.what());
      const auto* known = dynamic_cast<const Error*>(&error);
      abandon_steps(error.what(), known != nullptr ? known->code() : ErrorCode::Internal);
      if (const auto fault = model_.backend->fault()) {
        give_up(fmt::format("the {} device is lost ({}): start the server again", model_.backend->name(), *fault));
      }
    }
    remove_finished();
  }

  /// The device is lost: whoever waits hears it, and whoever comes.
  void give_up(const std::string& message) {
    for (Sequence* sequence : scheduler_.all()) {
      sequence->finish(FinishReason::Error, message, ErrorCode::Unavailable);
    }
    std::function<void()> on_failure;
    {
      const std::scoped_lock lock(mutex_);
      if (!failure_) on_failure = on_failure_;
      failure_ = message;
    }
    if (on_failure) on_failure();
  }

  void launch(std::vector<ScheduledSequence> scheduled) {
    if (scheduled.empty()) return;
    Step& step = *in_flight_.emplace_back(std::make_unique<Step>(blocks_.block_size()));
    step.parts = std::move(scheduled);
    for (const ScheduledSequence& part : step.parts) {
      if (part.sampled_row >= 0) {
        step.inputs.add_sampled(part.sampled_row, part.first, part.sequence->blocks);
      } else {
        step.inputs.add(part.sequence->tokens(), part.first, part.count, part.sequence->blocks);
      }
      if (!part.samples()) continue;
      step.sampling.push_back(part.sequence);
      step.rows.push_back(part.sequence->sampling_row(part.sampled_row >= 0 ? 1 : 0));
      step.inputs.want_logits(step.inputs.num_tokens() - 1);
    }
    const std::int64_t num_sampling = step.inputs.num_logit_rows();
    std::int64_t first_row = 0;
    for (const ScheduledSequence& part : step.parts) {
      const auto [first, end] = wanted_prompt_logprobs(part);
      for (std::int64_t position = first; position < end; ++position) {
        step.inputs.want_logits(first_row + position - part.first);
      }
      first_row += part.count;
    }
    step.batch = step.inputs.view();
    backend::Activation& logits = model_.decoder->step(step.batch, *model_.cache, num_sampling);
    if (step.rows.empty()) return;
    step.sampled.resize(step.rows.size());
    model_.backend->sample(logits, step.rows, step.sampled);
    step.has_samples = true;
  }

  /// Nobody waits for a decision that this step's tokens bring, and nothing of it is read after its launch.
  bool may_launch_ahead() const {
    if (!async_scheduling_ || model_.backend->max_steps_in_flight() < 2 || !score_jobs_.empty()) return false;
    const Step& step = *in_flight_.front();
    return in_flight_.size() == 1 && step.batch.logit_rows.size() == step.rows.size();
  }

  /// Takes the oldest step's tokens. What it sampled for sequences that ended meanwhile is dropped.
  void collect() {
    Step& step = *in_flight_.front();
    auto first_row = static_cast<std::int64_t>(step.rows.size());
    for (const ScheduledSequence& part : step.parts) first_row += collect_prompt_logprobs(step, part, first_row);
    if (std::exchange(step.has_samples, false)) model_.backend->collect();
    scheduler_.commit(step.parts);
    for (std::size_t i = 0; i < step.sampling.size(); ++i) {
      Sequence& sequence = *step.sampling[i];
      if (sequence.is_finished()) continue;
      if (sequence.num_output_tokens() == 0) num_prompt_tokens_ += sequence.num_prompt_tokens();
      sequence.append(step.sampled[i]);
      ++num_generated_tokens_;
    }
    const std::unique_ptr<Step> done = std::move(in_flight_.front());
    in_flight_.pop_front();
    // A step behind this one may still name sequences that end here.
    if (!in_flight_.empty()) std::ranges::move(done->finished, std::back_inserter(in_flight_.back()->finished));
  }

  /// Ends the sequences of all steps in flight, which are waited for.
  void abandon_steps(const char* error, ErrorCode code) {
    for (const auto& step : in_flight_) {
      for (const ScheduledSequence& part : step->parts) part.sequence->finish(FinishReason::Error, error, code);
      try {
        if (step->has_samples) model_.backend->collect();
      } catch (const std::exception&) {  // the same trouble again
      }
    }
    scheduler_.remove_finished();
    in_flight_.clear();
  }

  /// Frees finished sequences, their memory not before the steps that name them are collected.
  void remove_finished() {
    std::vector<std::unique_ptr<Sequence>> finished = scheduler_.remove_finished();
    if (!in_flight_.empty()) std::ranges::move(finished, std::back_inserter(in_flight_.back()->finished));
  }

  /// Positions [first, end) of a step's part whose logits predict prompt tokens that are still wanted.
  static std::pair<std::int64_t, std::int64_t> wanted_prompt_logprobs(const ScheduledSequence& part) {
    const Sequence& sequence = *part.sequence;
    if (!sequence.wants_prompt_logprobs()) return {0, 0};
    return {std::max(part.first, sequence.next_prompt_logprob() - 1),
            std::min(part.first + part.count, sequence.num_prompt_tokens() - 1)};
  }

  /// Log-probabilities of the prompt tokens that the step's logit rows from first_row on predict; how many.
  std::int64_t collect_prompt_logprobs(Step& step, const ScheduledSequence& part, std::int64_t first_row) {
    Sequence& sequence = *part.sequence;
    const auto [first, end] = wanted_prompt_logprobs(part);
    for (std::int64_t position = first; position < end; position += kScoreTileRows) {
      const std::int64_t count = std::min(kScoreTileRows, end - position);
      const auto logits = read_logits(step.batch, first_row + position - first, count);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int32_t token = sequence.tokens()[static_cast<std::size_t>(position + r + 1)];
        sequence.add_prompt_logprob(logprob_of(logits.row_span(r), token, sequence.params().num_prompt_logprobs));
      }
    }
    return std::max<std::int64_t>(end - first, 0);
  }

  static TokenLogprob logprob_of(std::span<const float> logits, std::int32_t token, std::int32_t num_top) {
    const double log_sum = backend::log_sum_exp(logits);
    return {token, static_cast<float>(logits[static_cast<std::size_t>(token)] - log_sum),
            backend::top_logprobs(logits, log_sum, num_top)};
  }

  /// Logits of logit rows [first_row, first_row + count) of the last step, on the host; valid until the next call.
  Matrix<const float> read_logits(const backend::ForwardBatch& batch, std::int64_t first_row, std::int64_t count) {
    tile_.resize(static_cast<std::size_t>(count * config().vocab_size));
    const Matrix<float> tile{tile_.data(), count, config().vocab_size, config().vocab_size};
    model_.backend->read(model_.decoder->logits(batch, first_row, count), tile);
    return tile;
  }

  /// Jobs whose KV blocks are free now; the others wait for running sequences to end.
  void run_score_jobs() {
    while (!score_jobs_.empty()) {
      const auto needed = blocks_for(static_cast<std::int64_t>(score_jobs_.front().tokens->size()));
      if (needed > blocks_.num_available()) return;
      ScoreJob job = std::move(score_jobs_.front());
      score_jobs_.pop_front();
      std::vector<std::int32_t> blocks;
      for (std::int64_t i = 0; i < needed; ++i) blocks.push_back(*blocks_.allocate());
      try {
        run_score_job(job, blocks);
        job.done.set_value();
      } catch (...) {
        job.done.set_exception(std::current_exception());
      }
      blocks_.release(blocks);
    }
  }

  void run_score_job(const ScoreJob& job, const std::vector<std::int32_t>& blocks) {
    const auto num_tokens = static_cast<std::int64_t>(job.tokens->size());
    const std::int64_t chunk = model_.decoder->max_tokens();
    for (std::int64_t first = 0; first < num_tokens; first += chunk) {
      const std::int64_t count = std::min(chunk, num_tokens - first);
      StepBatch inputs(blocks_.block_size());
      inputs.add(*job.tokens, first, count, blocks);
      for (std::int64_t t = 0; t < count; ++t) inputs.want_logits(t);
      const backend::ForwardBatch batch = inputs.view();
      model_.decoder->step(batch, *model_.cache, 0);
      for (std::int64_t row = 0; row < count; row += kScoreTileRows) {
        (*job.sink)({first + row, read_logits(batch, row, std::min(kScoreTileRows, count - row))});
      }
    }
  }

  std::int64_t blocks_for(std::int64_t num_tokens) const {
    return (num_tokens + blocks_.block_size() - 1) / blocks_.block_size();
  }

  void publish_stats() {
    const std::scoped_lock lock(mutex_);
    stats_.num_running = scheduler_.num_running();
    stats_.num_waiting = scheduler_.num_waiting() + static_cast<std::int64_t>(inbox_.requests.size());
    stats_.num_free_kv_blocks = blocks_.num_available();
    stats_.num_preemptions = scheduler_.num_preemptions();
    stats_.prompt_tokens = num_prompt_tokens_;
    stats_.generation_tokens = num_generated_tokens_;
    stats_.prefix_cache_queries = blocks_.num_queries();
    stats_.prefix_cache_hits = blocks_.num_hits();
    if (scheduler_.is_idle()) idle_.notify_all();
  }

  LoadedModel model_;
  BlockManager blocks_;
  Scheduler scheduler_;
  bool async_scheduling_;
  std::deque<std::unique_ptr<Step>> in_flight_;  // launched and not collected, oldest first: two at most
  std::mt19937_64 seeds_;
  std::deque<ScoreJob> score_jobs_;
  std::vector<float> tile_;
  std::int64_t num_prompt_tokens_ = 0;
  std::int64_t num_generated_tokens_ = 0;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable work_;
  std::condition_variable idle_;
  Inbox inbox_;
  EngineStats stats_;
  bool is_draining_ = false;
  std::optional<std::string> failure_;
  std::function<void()> on_failure_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Engine> Engine::load(const std::filesystem::path& model, const EngineOptions& options) {
  return std::make_unique<EngineImpl>(load_model(model, options), options);
}

}  // namespace nibble::engine
