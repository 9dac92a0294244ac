#include "quantize/loss_walk.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "core/file.h"
#include "core/progress.h"
#include "quantize/backward.h"
#include "quantize/cross_entropy.h"
#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

// Logits of a vocabulary of 128k for so many tokens take half a gigabyte.
constexpr std::int64_t kLogitRows = 1024;

backend::RopeSpec rope_spec(const models::ModelConfig& config, std::int64_t seq_len) {
  return {.inv_freq = models::rope_inverse_frequencies(config), .attention_factor = 1, .max_positions = seq_len};
}

/// f32 [vocab_size, hidden_size]
Tensor load_head(const formats::Checkpoint& checkpoint, const Plan& plan) {
  const std::string head(plan.architecture->lm_head);
  if (!plan.config.tie_word_embeddings) {  // where it is missing, `linear` says so
    Tensor weight = weights::dequantize(checkpoint.linear(head, {plan.config.vocab_size, plan.config.hidden_size}));
    checkpoint.release(head);
    return weight;
  }
  return to_dtype(checkpoint.tensor(std::string(plan.architecture->embedding) + ".weight"), DType::F32);
}

/// Final norm, lm_head and cross entropy, batch after batch.
class HeadBackward {
 public:
  HeadBackward(const formats::Checkpoint& checkpoint, const Plan& plan, backend::Backend& backend,
               const LossOptions& options)
      : backend_(backend),
        options_(options),
        eps_(static_cast<float>(plan.config.rms_norm_eps)),
        head_(load_head(checkpoint, plan)),
        norm_(to_dtype(checkpoint.tensor(std::string(plan.architecture->final_norm) + ".weight"), DType::F32)),
        input_(backend.make_activation(kLogitRows, plan.config.hidden_size, {})),
        normed_(backend.make_activation(kLogitRows, plan.config.hidden_size, {})),
        logits_(Tensor::empty(DType::F32, {kLogitRows, plan.config.vocab_size})),
        d_normed_(Tensor::empty(DType::F32, {kLogitRows, plan.config.hidden_size})) {}

  /// hidden [tokens, hidden_size] becomes ∂L/∂hidden.
  void run(std::span<const std::int32_t> next_tokens, Matrix<float> hidden) {
    for (std::int64_t first = 0; first < hidden.rows; first += kLogitRows) {
      const std::int64_t count = std::min(kLogitRows, hidden.rows - first);
      run_tile(next_tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)),
               hidden.block(first, count));
    }
  }

  /// Of the tokens that have a label.
  double mean_loss() const { return num_labels_ > 0 ? loss_ / static_cast<double>(num_labels_) : 0; }

 private:
  void run_tile(std::span<const std::int32_t> next_tokens, Matrix<float> hidden) {
    ThreadPool& pool = backend_.pool();
    backend_.write(hidden, input_);
    backend_.norm(input_, nullptr, norm_, eps_, normed_);
    const Matrix<float> logits = logits_.matrix<float>().block(0, hidden.rows);
    multiply_transposed(normed_.values.matrix<float>().block(0, hidden.rows), head_.matrix<float>(), logits, pool);
    loss_ += cross_entropy_backward(logits, {options_, position_, next_tokens}, pool);
    const bool all = options_.labels == LossLabels::Sampled;
    num_labels_ += all ? hidden.rows : std::ranges::count_if(next_tokens, [](std::int32_t t) { return t >= 0; });
    position_ += hidden.rows;
    const Matrix<float> d_normed = d_normed_.matrix<float>().block(0, hidden.rows);
    fill_zero(d_normed);
    accumulate_untransposed(logits, head_.matrix<float>(), d_normed, pool);
    fill_zero(hidden);
    rms_norm_backward(input_.values.matrix<float>().block(0, hidden.rows), norm_.span<float>(), eps_, d_normed, hidden,
                      pool);
  }

  static void fill_zero(Matrix<float> matrix) { std::fill_n(matrix.data, matrix.rows * matrix.cols, 0.0f); }

  backend::Backend& backend_;
  LossOptions options_;
  float eps_;
  Tensor head_;                // f32 [vocab_size, hidden_size]
  Tensor norm_;                // f32 [hidden_size]
  backend::Activation input_;  // a tile of the residual stream
  backend::Activation normed_;
  Tensor logits_;  // f32 [tile, vocab_size], then their gradient
  Tensor d_normed_;
  double loss_ = 0;
  std::int64_t num_labels_ = 0;
  std::int64_t position_ = 0;
};

}  // namespace

LossWalk::LossWalk(const formats::Checkpoint& checkpoint, const Plan& plan, backend::Backend& backend,
                   const CalibrationSamples& samples, const LossOptions& options, const LossNeeds& needs,
                   const std::filesystem::path& block_inputs)
    : checkpoint_(checkpoint),
      plan_(plan),
      backend_(backend),
      rope_(rope_spec(plan.config, samples.seq_len)),
      options_(options),
      needs_(needs),
      batches_(make_batches(samples)),
      block_inputs_(block_inputs, samples.num_samples * samples.seq_len, plan.config.hidden_size) {}

double LossWalk::forward() {
  const auto num_blocks = static_cast<std::int64_t>(plan_.blocks.size());
  Progress progress("Forward pass", num_blocks, "blocks");
  embed();
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    forward_block(load_float_block(checkpoint_, plan_.blocks[static_cast<std::size_t>(b)]), b);
    progress.update(b + 1);
  }
  return backward_head();
}

void LossWalk::save(const std::filesystem::path& gradient) {
  block_inputs_.sync();
  AtomicFile file = AtomicFile::reopen(gradient, 0);
  for (const Tensor& hidden : hidden_) file.write(std::as_bytes(hidden.span<float>()));
  file.seal();
}

void LossWalk::restore(const std::filesystem::path& gradient) {
  const MappedFile file = MappedFile::open(gradient);
  hidden_.clear();
  std::size_t size = 0;
  for (const CalibrationBatch& batch : batches_) {
    hidden_.push_back(Tensor::empty(DType::F32, {batch.num_tokens(), plan_.config.hidden_size}));
    size += hidden_.back().size_bytes();
  }
  if (file.size_bytes() != size) {
    throw Error(ErrorCode::Corrupt,
                gradient.string() + ": is not the gradient of this run's tokens: its size is wrong");
  }
  std::size_t offset = 0;
  for (Tensor& hidden : hidden_) {
    const auto bytes = std::as_writable_bytes(hidden.span<float>());
    std::ranges::copy(file.bytes().subspan(offset, bytes.size()), bytes.begin());
    offset += bytes.size();
  }
}

void LossWalk::embed() {
  const std::string table = std::string(plan_.architecture->embedding) + ".weight";
  const auto embedding = backend_.make_embedding({Tensor::borrow(checkpoint_.tensor(table))});
  for (const CalibrationBatch& batch : batches_) {
    backend::Activation hidden = backend_.make_activation(batch.num_tokens(), plan_.config.hidden_size, {});
    backend_.embed(*embedding, batch.view(), hidden);
    hidden_.push_back(std::move(hidden.values));
  }
}

void LossWalk::forward_block(const FloatBlock& block, std::int64_t block_idx) {
  const models::DecoderBlock decoder = make_float_decoder(block, backend_);
  const auto cache = make_batch_cache(backend_, block.spec, batches_.front());
  const std::vector<backend::ActivationFormat> formats(block.spec.stages.size());
  models::BlockState state = models::make_block_state(backend_, block.spec, batches_.front().num_tokens(), formats);
  std::int64_t first_token = 0;
  for (std::size_t i = 0; i < batches_.size(); ++i) {
    const Matrix<float> hidden = hidden_[i].matrix<float>();
    block_inputs_.store(block_idx, first_token, hidden);
    const backend::ForwardBatch view = batches_[i].view();
    backend_.prepare_step(view, *cache);
    backend_.write(hidden, state.hidden);
    decoder.forward({backend_, rope_, *cache, view, /*layer_idx=*/0}, state);
    backend_.read(state.hidden, hidden);
    first_token += hidden.rows;
  }
}

double LossWalk::backward_head() {
  HeadBackward head(checkpoint_, plan_, backend_, options_);
  for (std::size_t i = 0; i < batches_.size(); ++i) {
    head.run(next_tokens(batches_[i]), hidden_[i].matrix<float>());
  }
  return head.mean_loss();
}

std::vector<std::int32_t> LossWalk::next_tokens(const CalibrationBatch& batch) const {
  std::vector<std::int32_t> next(batch.tokens.begin() + 1, batch.tokens.end());
  next.push_back(-1);
  for (std::size_t s = 1; s < batch.query_start.size(); ++s) {
    next[static_cast<std::size_t>(batch.query_start[s]) - 1] = -1;
  }
  return next;
}

std::vector<StageLossStatistics> LossWalk::backward(const FloatBlock& block, std::int64_t block_idx) {
  const BackwardContext context{backend_, rope_, batches_.front().num_tokens(), needs_, options_.fisher_form};
  BlockBackward pass(block, context);
  const auto cache = make_batch_cache(backend_, block.spec, batches_.front());
  Tensor input = Tensor::empty(DType::F32, {batches_.front().num_tokens(), block.spec.hidden_size});
  std::int64_t first_token = 0;
  for (std::size_t i = 0; i < batches_.size(); ++i) {
    const Matrix<float> rows = input.matrix<float>().block(0, batches_[i].num_tokens());
    block_inputs_.load(block_idx, first_token, rows);
    pass.run(batches_[i], *cache, rows, hidden_[i].matrix<float>());
    first_token += rows.rows;
  }
  std::vector<StageLossStatistics> statistics;
  for (std::size_t s = 0; s < block.stages.size(); ++s) statistics.push_back(pass.take(s));
  return statistics;
}

}  // namespace nibble::quantize
