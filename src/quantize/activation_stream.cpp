#include "quantize/activation_stream.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <utility>

#include "quantize/linear_algebra.h"
#include "quantize/magnitude_range.h"

namespace nibble::quantize {
namespace {

/// The valid rows.
std::span<const std::byte> bytes_of(const backend::Activation& activation) {
  const auto count = static_cast<std::size_t>(activation.num_tokens * activation.width());
  return std::as_bytes(activation.values.span<float>().first(count));
}
std::span<std::byte> writable_bytes_of(backend::Activation& activation) {
  const auto count = static_cast<std::size_t>(activation.num_tokens * activation.width());
  return std::as_writable_bytes(activation.values.span<float>().first(count));
}

/// Of a token in a file whose rows are `width` floats apart.
std::int64_t offset_of(std::int64_t token, std::int64_t width) {
  return token * width * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace

/// Sums up a stage's inputs, chunk after chunk.
class ActivationStream::Statistics {
 public:
  Statistics(std::int64_t width, const InputStatistics& wanted)
      : wanted_(wanted), range_(wanted.percentile), key_range_(wanted.percentile), value_range_(wanted.percentile) {
    if (wanted.kind != InputStatistics::Kind::Gram) return;
    gram_ = Tensor::zeros(DType::F32, {width, width});
    magnitude_.resize(static_cast<std::size_t>(width));
  }

  void add(const backend::Activation& input, ThreadPool& pool) {
    const Matrix<const float> x = input.values.matrix<float>().block(0, input.num_tokens);
    num_tokens_ += input.num_tokens;
    if (wanted_.kind == InputStatistics::Kind::Range) range_.add(x, pool);
    if (wanted_.kind != InputStatistics::Kind::Gram) return;
    accumulate_gram(x, gram_.matrix<float>(), pool);
    // Inside a chunk in f32, in a loop over channels that vectorizes; across chunks in f64.
    std::vector<float> chunk(magnitude_.size());
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const float* row = x.row(t);
      for (std::size_t k = 0; k < chunk.size(); ++k) chunk[k] += std::abs(row[k]);
    }
    for (std::size_t k = 0; k < chunk.size(); ++k) magnitude_[k] += chunk[k];
  }

  /// The keys, rotated, and the values that attention read, in qkv [tokens, q_width + 2 kv_width].
  void add_keys_and_values(const backend::Activation& qkv, const backend::AttentionSpec& spec, ThreadPool& pool) {
    if (wanted_.kind != InputStatistics::Kind::Range) return;
    const Matrix<const float> rows = qkv.values.matrix<float>().block(0, qkv.num_tokens);
    key_range_.add(rows.columns(spec.q_width(), spec.kv_width()), pool);
    value_range_.add(rows.columns(spec.q_width() + spec.kv_width(), spec.kv_width()), pool);
  }

  StageInputs take() {
    StageInputs inputs;
    inputs.num_tokens = num_tokens_;
    if (wanted_.kind == InputStatistics::Kind::Range) {
      inputs.range = range_.range();
      inputs.key_range = key_range_.range();
      inputs.value_range = value_range_.range();
    }
    if (wanted_.kind != InputStatistics::Kind::Gram) return inputs;
    mirror_upper(gram_.matrix<float>());
    inputs.gram = std::move(gram_);
    inputs.mean_magnitude = Tensor::empty(DType::F32, {static_cast<std::int64_t>(magnitude_.size())});
    const auto mean = inputs.mean_magnitude.span<float>();
    for (std::size_t k = 0; k < mean.size(); ++k) {
      mean[k] = static_cast<float>(magnitude_[k] / static_cast<double>(num_tokens_));
    }
    return inputs;
  }

 private:
  InputStatistics wanted_;
  Tensor gram_;
  std::vector<double> magnitude_;
  MagnitudeRange range_;
  MagnitudeRange key_range_;
  MagnitudeRange value_range_;
  std::int64_t num_tokens_ = 0;
};

ActivationStream::ActivationStream(backend::Backend& backend, const backend::Rope& rope,
                                   const CalibrationSamples& samples, const InputStatistics& wanted)
    : backend_(backend), rope_(rope), wanted_(wanted), num_tokens_(samples.num_samples * samples.seq_len) {
  for (CalibrationBatch& batch : make_batches(samples))
    chunks_.push_back({.batch = std::move(batch), .hidden = {}, .input = {}});
  for (std::size_t i = 1; i < chunks_.size(); ++i) {
    chunks_[i].first_token = chunks_[i - 1].first_token + chunks_[i - 1].batch.num_tokens();
  }
  chunk_tokens_ = chunks_.front().batch.num_tokens();
}

template <class Body>
void ActivationStream::for_each_chunk(const Body& body) {
  for (Chunk& chunk : chunks_) {
    const backend::ForwardBatch batch = chunk.batch.view();
    backend_.prepare_step(batch, *cache_);
    // The cache holds one layer, that of the block at work.
    const models::BlockContext context{backend_, rope_, *cache_, batch, /*layer_idx=*/0};
    body(chunk, context);
  }
}

void ActivationStream::set_storage(const StreamStorage& storage) {
  if (storage.hidden == Residence::ScratchFile) hidden_file_.emplace(storage.folder);
  if (storage.inputs == Residence::ScratchFile) input_file_.emplace(storage.folder);
}

void ActivationStream::embed(const backend::Embedding& embedding, std::int64_t hidden_size) {
  hidden_size_ = hidden_size;
  for (Chunk& chunk : chunks_) {
    const backend::ForwardBatch batch = chunk.batch.view();
    chunk.hidden = backend_.make_activation(batch.num_tokens(), hidden_size, backend_.hidden_format());
    backend_.embed(embedding, batch, chunk.hidden);
    if (!hidden_file_) continue;
    hidden_file_->write(offset_of(chunk.first_token, hidden_size), bytes_of(chunk.hidden));
    chunk.hidden = {};
  }
}

void ActivationStream::reserve(const models::BlockSpec& spec) {
  cache_ = make_batch_cache(backend_, spec, chunks_.front().batch);
  if (!state_.stage_input.empty()) return;  // all blocks of a model have the same shape
  const std::vector<backend::ActivationFormat> formats(spec.stages.size());
  state_ = models::make_block_state(backend_, spec, chunk_tokens_, formats);
  for (const backend::Activation& input : state_.stage_input) widest_input_ = std::max(widest_input_, input.width());
}

void ActivationStream::save(std::span<const ActivationStream* const> streams, const std::filesystem::path& path) {
  AtomicFile file = AtomicFile::reopen(path, 0);
  for (const ActivationStream* stream : streams) stream->save_to(file);
  file.seal();
}

void ActivationStream::restore(std::span<ActivationStream* const> streams, const std::filesystem::path& path) {
  const MappedFile file = MappedFile::open(path);
  std::int64_t size = 0;
  for (const ActivationStream* stream : streams) size += stream->state_bytes();
  if (file.size_bytes() != static_cast<std::size_t>(size)) {
    throw Error(ErrorCode::Corrupt, path.string() + ": is not the state of this run's activations: its size is wrong");
  }
  std::int64_t offset = 0;
  for (ActivationStream* stream : streams) {
    stream->restore_from(file, offset);
    offset += stream->state_bytes();
  }
}

std::int64_t ActivationStream::state_bytes() const {
  return offset_of(num_tokens_, hidden_size_);
}

void ActivationStream::save_to(AtomicFile& file) const {
  Tensor rows = hidden_file_ ? Tensor::empty(DType::F32, {chunk_tokens_, hidden_size_}) : Tensor();
  for (const Chunk& chunk : chunks_) {
    if (!hidden_file_) {
      file.write(std::as_bytes(chunk.hidden.values.span<float>()));
      continue;
    }
    const auto bytes = std::as_writable_bytes(rows.span<float>())
                           .first(static_cast<std::size_t>(offset_of(chunk.batch.num_tokens(), hidden_size_)));
    hidden_file_->read(offset_of(chunk.first_token, hidden_size_), bytes);
    file.write(bytes);
  }
}

void ActivationStream::restore_from(const MappedFile& file, std::int64_t start) {
  for (Chunk& chunk : chunks_) {
    const std::int64_t offset = offset_of(chunk.first_token, hidden_size_);
    const auto bytes =
        file.bytes().subspan(static_cast<std::size_t>(start + offset),
                             static_cast<std::size_t>(offset_of(chunk.batch.num_tokens(), hidden_size_)));
    if (hidden_file_) {
      hidden_file_->write(offset, bytes);
    } else {
      std::ranges::copy(bytes, std::as_writable_bytes(chunk.hidden.values.span<float>()).begin());
    }
    file.release(bytes);
  }
}

void ActivationStream::borrow_hidden(Chunk& chunk) {
  if (!hidden_file_) {
    std::swap(state_.hidden, chunk.hidden);
    return;
  }
  state_.hidden.num_tokens = chunk.batch.num_tokens();
  hidden_file_->read(offset_of(chunk.first_token, hidden_size_), writable_bytes_of(state_.hidden));
}

void ActivationStream::return_hidden(Chunk& chunk) {
  if (!hidden_file_) {
    std::swap(state_.hidden, chunk.hidden);
    return;
  }
  hidden_file_->write(offset_of(chunk.first_token, hidden_size_), bytes_of(state_.hidden));
}

std::vector<StageInputs> ActivationStream::observe(const models::DecoderBlock& block) {
  reserve(block.spec());
  const std::size_t num_stages = block.spec().stages.size();
  std::vector<Statistics> statistics;
  for (const backend::Activation& input : state_.stage_input) statistics.emplace_back(input.width(), wanted_);
  for_each_chunk([&](Chunk& chunk, const models::BlockContext& context) {
    if (hidden_file_) {
      borrow_hidden(chunk);
    } else {
      std::ranges::copy(chunk.hidden.values.span<float>(), state_.hidden.values.span<float>().begin());
      state_.hidden.num_tokens = chunk.hidden.num_tokens;
    }
    for (std::size_t s = 0; s < num_stages; ++s) {
      block.prepare(s, context, state_);
      statistics[s].add(state_.stage_input[s], backend_.pool());
      if (s + 1 < num_stages) block.apply(s, state_);
    }
  });
  std::vector<StageInputs> inputs;
  for (Statistics& stage : statistics) inputs.push_back(stage.take());
  return inputs;
}

StageInputs ActivationStream::enter(const models::DecoderBlock& block) {
  reserve(block.spec());
  Statistics statistics(state_.stage_input.front().width(), wanted_);
  for_each_chunk([&](Chunk& chunk, const models::BlockContext& context) {
    borrow_hidden(chunk);
    block.prepare(0, context, state_);
    statistics.add(state_.stage_input.front(), backend_.pool());
    take_input(chunk, 0);
    return_hidden(chunk);
  });
  return statistics.take();
}

StageInputs ActivationStream::advance(const models::DecoderBlock& block, std::size_t stage_idx) {
  const std::size_t next = stage_idx + 1;
  Statistics statistics(state_.stage_input[next].width(), wanted_);
  for_each_chunk([&](Chunk& chunk, const models::BlockContext& context) {
    borrow_hidden(chunk);
    put_input(chunk, stage_idx);
    block.apply(stage_idx, state_);
    block.prepare(next, context, state_);
    statistics.add(state_.stage_input[next], backend_.pool());
    if (block.spec().stages[next].prepare == models::Prepare::Attention) {
      statistics.add_keys_and_values(state_.stage_output[stage_idx], block.spec().attention, backend_.pool());
    }
    take_input(chunk, next);
    return_hidden(chunk);
  });
  return statistics.take();
}

void ActivationStream::leave(const models::DecoderBlock& block) {
  const std::size_t last = block.spec().stages.size() - 1;
  for_each_chunk([&](Chunk& chunk, const models::BlockContext& context) {
    borrow_hidden(chunk);
    put_input(chunk, last);
    block.apply(last, state_);
    block.finish(context, state_);
    return_hidden(chunk);
  });
}

Tensor ActivationStream::input_drift_from(const ActivationStream& reference) const {
  return drift_from(reference, Rows::Input);
}

Tensor ActivationStream::residual_drift_from(const ActivationStream& reference) const {
  return drift_from(reference, Rows::Hidden);
}

Tensor ActivationStream::drift_from(const ActivationStream& reference, Rows rows) const {
  check(input_width_ == reference.input_width_, "drift: both streams stand at the same stage");
  Tensor drift = Tensor::zeros(DType::F32, {width_of(rows), input_width_});
  Tensor difference = Tensor::empty(DType::F32, {chunk_tokens_, width_of(rows)});
  Tensor input_buffer;
  Tensor buffer;
  Tensor reference_buffer;
  for (std::size_t i = 0; i < chunks_.size(); ++i) {
    const Matrix<const float> x = rows_of(chunks_[i], Rows::Input, input_buffer);
    const Matrix<const float> y = rows == Rows::Input ? x : rows_of(chunks_[i], rows, buffer);
    const Matrix<const float> wanted = reference.rows_of(reference.chunks_[i], rows, reference_buffer);
    const Matrix<float> d = difference.matrix<float>().block(0, x.rows);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      std::ranges::transform(wanted.row_span(t), y.row_span(t), d.row(t), std::minus<>());
    }
    accumulate_product(d, x, drift.matrix<float>(), backend_.pool());
  }
  return drift;
}

Matrix<const float> ActivationStream::rows_of(const Chunk& chunk, Rows rows, Tensor& buffer) const {
  const std::int64_t num_tokens = chunk.batch.num_tokens();
  const std::optional<ScratchFile>& file = rows == Rows::Input ? input_file_ : hidden_file_;
  if (!file) {
    const backend::Activation& held = rows == Rows::Input ? chunk.input : chunk.hidden;
    return held.values.matrix<float>().block(0, num_tokens);
  }
  const std::int64_t stride = rows == Rows::Input ? widest_input_ : hidden_size_;
  if (buffer.is_empty()) buffer = Tensor::empty(DType::F32, {chunk_tokens_, width_of(rows)});
  const auto count = static_cast<std::size_t>(num_tokens * width_of(rows));
  file->read(offset_of(chunk.first_token, stride), std::as_writable_bytes(buffer.span<float>().first(count)));
  return buffer.matrix<float>().block(0, num_tokens);
}

void ActivationStream::put_input(Chunk& chunk, std::size_t stage_idx) {
  if (input_file_) {
    backend::Activation& input = state_.stage_input[stage_idx];
    input.num_tokens = chunk.batch.num_tokens();
    input_file_->read(offset_of(chunk.first_token, widest_input_), writable_bytes_of(input));
    return;
  }
  spare_inputs_.push_back(std::exchange(state_.stage_input[stage_idx], std::move(chunk.input)));
}

void ActivationStream::take_input(Chunk& chunk, std::size_t stage_idx) {
  input_width_ = state_.stage_input[stage_idx].width();
  if (input_file_) {
    input_file_->write(offset_of(chunk.first_token, widest_input_), bytes_of(state_.stage_input[stage_idx]));
    return;
  }
  chunk.input = std::move(state_.stage_input[stage_idx]);
  const auto spare = std::ranges::find_if(
      spare_inputs_, [&](const backend::Activation& activation) { return activation.width() == input_width_; });
  if (spare == spare_inputs_.end()) {
    state_.stage_input[stage_idx] = backend_.make_activation(chunk_tokens_, input_width_, {});
  } else {
    state_.stage_input[stage_idx] = std::move(*spare);
    spare_inputs_.erase(spare);
  }
}

}  // namespace nibble::quantize
