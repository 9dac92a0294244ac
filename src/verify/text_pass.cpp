#include "verify/text_pass.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "models/loader.h"

namespace nibble::verify {
namespace {

constexpr std::int32_t kKvBlock = 16;
constexpr std::int64_t kLogitRows = 64;

std::int64_t num_tokens_of(std::span<const std::int32_t> tokens) {
  return static_cast<std::int64_t>(tokens.size());
}

/// Outputs of `rows` as the reading has them.
void reread(const TextReading& reading, Matrix<float> rows, ThreadPool& pool) {
  const Matrix<float> outputs = rows.columns(reading.first_output, reading.num_outputs);
  pool.run(outputs.rows, [&](std::int64_t r, int) {
    const std::span<float> row = outputs.row_span(r);
    if (!reading.order.empty()) {
      const std::vector<float> stored(row.begin(), row.end());
      for (std::size_t i = 0; i < row.size(); ++i) row[i] = stored[static_cast<std::size_t>(reading.order[i])];
    }
    for (std::size_t i = 0; i < row.size(); ++i) {
      const float bias = reading.bias.empty() ? 0 : reading.bias[i];
      row[i] = reading.factor * (row[i] - bias) + bias;
    }
  });
}

float largest_of(Matrix<const float> outputs) {
  float largest = 0;
  for (std::int64_t r = 0; r < outputs.rows; ++r) {
    for (const float value : outputs.row_span(r)) {
      if (!std::isfinite(value)) return std::numeric_limits<float>::infinity();
      largest = std::max(largest, std::abs(value));
    }
  }
  return largest;
}

float cross_entropy(std::span<const float> logits, std::int32_t label) {
  const float largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  return static_cast<float>(std::log(sum) + largest - logits[static_cast<std::size_t>(label)]);
}

}  // namespace

TextPass::TextPass(const formats::Checkpoint& checkpoint, const models::ModelConfig& config, backend::Backend& backend,
                   std::span<const std::int32_t> tokens)
    : checkpoint_(checkpoint),
      config_(config),
      backend_(backend),
      tokens_(tokens.begin(), tokens.end()),
      positions_(tokens.size()),
      query_start_{0, static_cast<std::int32_t>(tokens.size())},
      context_len_{static_cast<std::int32_t>(tokens.size())},
      kv_blocks_((tokens.size() + kKvBlock - 1) / kKvBlock),
      slots_(tokens.size()),
      rope_(backend.make_rope({.inv_freq = models::rope_inverse_frequencies(config),
                               .attention_factor = 1,
                               .max_positions = num_tokens_of(tokens)})) {
  std::iota(positions_.begin(), positions_.end(), 0);
  std::iota(kv_blocks_.begin(), kv_blocks_.end(), 0);
  std::iota(slots_.begin(), slots_.end(), 0);
}

TextLosses TextPass::run(std::span<const TextReading> readings, const std::function<void()>& on_block) {
  TextLosses losses;
  std::vector<Stream> streams;
  streams.push_back({nullptr, embed()});
  for (const TextReading& reading : readings) streams.push_back({&reading, {}});
  const models::Architecture& architecture = models::find_architecture(config_.architecture);
  for (std::int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    const models::DecoderBlock block =
        models::load_block(checkpoint_, architecture.block(config_, layer), backend_, {});
    run_block(block, layer, streams, losses);
    on_block();
  }
  const Tensor final_norm = models::load_final_norm(checkpoint_, config_, backend_);
  const auto lm_head = models::load_lm_head(checkpoint_, config_, backend_);
  losses.stored = next_token_losses(streams.front().hidden, final_norm, *lm_head);
  for (std::size_t s = 1; s < streams.size(); ++s) {
    losses.readings.push_back(next_token_losses(streams[s].hidden, final_norm, *lm_head));
  }
  return losses;
}

backend::ForwardBatch TextPass::batch() const {
  return {.tokens = tokens_,
          .positions = positions_,
          .query_start = query_start_,
          .context_len = context_len_,
          .block_table = kv_blocks_,
          .block_table_stride = static_cast<std::int64_t>(kv_blocks_.size()),
          .slot_mapping = slots_,
          .logit_rows = {}};
}

Tensor TextPass::embed() {
  const std::int64_t num_tokens = num_tokens_of(tokens_);
  const auto embedding = models::load_embedding(checkpoint_, config_, backend_);
  backend::Activation hidden = backend_.make_activation(num_tokens, config_.hidden_size, backend_.hidden_format());
  backend_.embed(*embedding, batch(), hidden);
  Tensor result = Tensor::empty(DType::F32, {num_tokens, config_.hidden_size});
  backend_.read(hidden, result.matrix<float>());
  return result;
}

void TextPass::run_block(const models::DecoderBlock& block, std::int64_t layer_idx, std::span<Stream> streams,
                         TextLosses& losses) {
  const backend::AttentionSpec& attention = block.spec().attention;
  const auto cache = backend_.make_kv_cache({{.dtype = DType::F32,
                                              .num_heads = attention.num_heads,
                                              .num_kv_heads = attention.num_kv_heads,
                                              .head_dim = attention.head_dim,
                                              .sliding_window = attention.sliding_window}},
                                            static_cast<std::int64_t>(kv_blocks_.size()), kKvBlock);
  std::vector<backend::ActivationFormat> formats;
  for (std::size_t s = 0; s < block.spec().stages.size(); ++s) formats.push_back(block.linear(s).input_format());
  models::BlockState state = models::make_block_state(backend_, block.spec(), num_tokens_of(tokens_), formats);
  const backend::ForwardBatch batch = this->batch();
  const models::BlockContext context{backend_, *rope_, *cache, batch, /*layer_idx=*/0};

  // The stored stream comes last: the others may still begin from it.
  for (Stream& stream : streams.subspan(1)) {
    if (stream.hidden.is_empty() && !stream.reading->covers(layer_idx)) continue;
    const Tensor& from = stream.hidden.is_empty() ? streams.front().hidden : stream.hidden;
    run_stream(block, context, state, from.matrix<float>(), stream, layer_idx, nullptr);
  }
  Stream& stored = streams.front();
  run_stream(block, context, state, stored.hidden.matrix<float>(), stored, layer_idx, &losses.largest_outputs);
}

void TextPass::run_stream(const models::DecoderBlock& block, const models::BlockContext& context,
                          models::BlockState& state, Matrix<const float> from, Stream& stream, std::int64_t layer_idx,
                          std::vector<LargestOutput>* largest) {
  const std::vector<models::Stage>& stages = block.spec().stages;
  backend_.prepare_step(context.batch, context.cache);
  backend_.write(from, state.hidden);
  for (std::size_t s = 0; s < stages.size(); ++s) {
    block.prepare(s, context, state);
    block.apply(s, state);
    const bool is_reread =
        stream.reading != nullptr && stream.reading->stage_idx == s && stream.reading->covers(layer_idx);
    if (!is_reread && largest == nullptr) continue;
    backend::Activation& output = state.stage_output[s];
    Tensor values = Tensor::empty(DType::F32, {output.num_tokens, output.width()});
    backend_.read(output, values.matrix<float>());
    if (is_reread) {
      reread(*stream.reading, values.matrix<float>(), backend_.pool());
      backend_.write(values.matrix<float>(), output);
      continue;
    }
    std::int64_t first = 0;
    for (const std::string& relative : stages[s].linears) {
      const std::int64_t width = models::linear_shape(block.spec(), relative)[0];
      largest->push_back(
          {block.spec().module_name(relative), largest_of(values.matrix<float>().columns(first, width))});
      first += width;
    }
  }
  block.finish(context, state);
  if (stream.hidden.is_empty()) stream.hidden = Tensor::empty(DType::F32, {from.rows, from.cols});
  backend_.read(state.hidden, stream.hidden.matrix<float>());
}

std::vector<float> TextPass::next_token_losses(const Tensor& hidden, const Tensor& final_norm,
                                               const backend::Linear& lm_head) {
  const auto rows_in = backend_.hidden_format();
  backend::Activation tile = backend_.make_activation(kLogitRows, config_.hidden_size, rows_in);
  backend::Activation input = backend_.make_activation(kLogitRows, config_.hidden_size, lm_head.input_format());
  backend::Activation logits = backend_.make_activation(kLogitRows, config_.vocab_size, {});
  Tensor values = Tensor::empty(DType::F32, {kLogitRows, config_.vocab_size});
  std::vector<float> losses(tokens_.size() - 1);
  const auto num_losses = static_cast<std::int64_t>(losses.size());
  for (std::int64_t first = 0; first < num_losses; first += kLogitRows) {
    const std::int64_t count = std::min(kLogitRows, num_losses - first);
    backend_.write(hidden.matrix<float>().block(first, count), tile);
    backend_.norm(tile, nullptr, final_norm, static_cast<float>(config_.rms_norm_eps), input);
    lm_head.forward(input, logits);
    const Matrix<float> rows = values.matrix<float>().block(0, count);
    backend_.read(logits, rows);
    backend_.pool().run(count, [&](std::int64_t r, int) {
      const auto token = static_cast<std::size_t>(first + r);
      losses[token] = cross_entropy(rows.row_span(r), tokens_[token + 1]);
    });
  }
  return losses;
}

}  // namespace nibble::verify
