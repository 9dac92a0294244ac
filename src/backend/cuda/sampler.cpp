#include "backend/cuda/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cuda/device.h"
#include "backend/host_sampling.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

/// Places of arrays in one block of memory, each aligned for any of the structs.
class Places {
 public:
  template <class T>
  std::size_t add(std::size_t count) {
    constexpr std::size_t kAlignment = 16;
    const std::size_t begin = (size_ + kAlignment - 1) / kAlignment * kAlignment;
    size_ = begin + count * sizeof(T);
    return begin;
  }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_ = 0;
};

template <class T>
T* at(Buffer& buffer, std::size_t place) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(buffer.data()) + place);
}

void reserve(Buffer& buffer, std::size_t size_bytes, Buffer (*allocate)(std::size_t)) {
  if (buffer.size_bytes() < size_bytes) buffer = allocate(2 * size_bytes);
}

/// The lists of all rows one behind another.
struct Lists {
  std::size_t counts = 0;
  std::size_t biases = 0;
  std::size_t banned = 0;
  std::size_t mask_words = 0;
  std::size_t edits() const { return counts + biases + banned; }
};

/// Moves past a row's list.
ListRange take(std::size_t& position, std::size_t count) {
  const auto begin = static_cast<std::int32_t>(position);
  position += count;
  return {begin, static_cast<std::int32_t>(position)};
}

std::vector<DeviceSamplingRow> describe(std::span<const SamplingRow> rows, std::int64_t vocab_size, Lists& lists,
                                        std::size_t& num_tops) {
  std::vector<DeviceSamplingRow> described;
  for (const SamplingRow& row : rows) {
    DeviceSamplingRow to;
    to.temperature = row.temperature;
    to.top_p = row.top_p;
    to.has_min_p = row.min_p > 0;
    if (to.has_min_p) to.log_min_p = std::log(row.min_p);
    to.is_greedy = row.temperature < kGreedyTemperature;
    to.top_k = row.top_k;
    to.repetition_penalty = row.repetition_penalty;
    to.presence_penalty = row.presence_penalty;
    to.frequency_penalty = row.frequency_penalty;
    to.random_bits = random_bits(row.seed, row.position);
    to.num_logprobs = static_cast<std::int32_t>(std::min<std::int64_t>(row.num_logprobs, vocab_size));
    to.is_skipped = to.num_logprobs > kMaxTopLogprobs;
    if (!to.is_skipped) {
      to.first_edit = static_cast<std::int32_t>(lists.edits());
      to.counts = take(lists.counts, row.counts.size());
      to.biases = take(lists.biases, row.logit_bias.size());
      to.banned = take(lists.banned, row.banned.size());
      if (!row.allowed_mask.empty()) to.allowed = take(lists.mask_words, row.allowed_mask.size()).begin;
      to.first_top = static_cast<std::int32_t>(num_tops);
      num_tops += static_cast<std::size_t>(std::max(to.num_logprobs, 0));
    }
    described.push_back(to);
  }
  return described;
}

}  // namespace

void Sampler::launch(Activation& logits, std::span<const SamplingRow> rows, std::span<SampledToken> out) {
  nibble::check(logits.values.dtype() == DType::F32 && logits.num_tokens == static_cast<std::int64_t>(rows.size()) &&
                    out.size() == rows.size(),
                "cuda sample: f32 logits, a row and a result each");
  nibble::check(num_launched_ < flights_.size(), "cuda sample: two launches wait for collect already");
  Flight& flight = flights_[next_];
  if (flight.done == nullptr) flight.done = make_event();
  Lists lists;
  std::size_t num_tops = 0;
  flight.rows = describe(rows, logits.width(), lists, num_tops);
  flight.out = out;

  Places inputs;
  const std::size_t rows_place = inputs.add<DeviceSamplingRow>(rows.size());
  const std::size_t counts_place = inputs.add<DeviceTokenCount>(lists.counts);
  const std::size_t biases_place = inputs.add<TokenBias>(lists.biases);
  const std::size_t banned_place = inputs.add<std::int32_t>(lists.banned);
  const std::size_t masks_place = inputs.add<std::uint32_t>(lists.mask_words);
  Places results;
  const std::size_t sampled_place = results.add<DeviceSampledToken>(rows.size());
  const std::size_t tops_place = results.add<TokenLogprob>(num_tops);
  reserve(flight.host_inputs, inputs.size(), pinned_buffer);
  reserve(flight.inputs, inputs.size(), device_buffer);
  reserve(flight.host_results, results.size(), pinned_buffer);
  reserve(flight.results, results.size(), device_buffer);
  reserve(flight.tokens, rows.size() * sizeof(std::int32_t), device_buffer);
  reserve(flight.raw, lists.edits() * sizeof(float), device_buffer);

  std::memcpy(at<DeviceSamplingRow>(flight.host_inputs, rows_place), flight.rows.data(),
              rows.size() * sizeof(DeviceSamplingRow));
  auto* count = at<DeviceTokenCount>(flight.host_inputs, counts_place);
  auto* bias = at<TokenBias>(flight.host_inputs, biases_place);
  auto* banned = at<std::int32_t>(flight.host_inputs, banned_place);
  auto* mask = at<std::uint32_t>(flight.host_inputs, masks_place);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (flight.rows[r].is_skipped) continue;
    for (const TokenCount& from : rows[r].counts) *count++ = {from.token, from.in_prompt, from.in_output};
    for (const auto& [token, value] : rows[r].logit_bias) *bias++ = {token, value};
    banned = std::ranges::copy(rows[r].banned, banned).out;
    mask = std::ranges::copy(rows[r].allowed_mask, mask).out;
  }
  check(
      cudaMemcpyAsync(flight.inputs.data(), flight.host_inputs.data(), inputs.size(), cudaMemcpyHostToDevice, stream_));
  const SamplingArguments arguments{.logits = static_cast<float*>(logits.values.mutable_view().data()),
                                    .num_rows = static_cast<std::int64_t>(rows.size()),
                                    .vocab_size = logits.width(),
                                    .rows = at<DeviceSamplingRow>(flight.inputs, rows_place),
                                    .counts = at<DeviceTokenCount>(flight.inputs, counts_place),
                                    .biases = at<TokenBias>(flight.inputs, biases_place),
                                    .banned = at<std::int32_t>(flight.inputs, banned_place),
                                    .allowed = at<std::uint32_t>(flight.inputs, masks_place),
                                    .raw = at<float>(flight.raw, 0),
                                    .sampled = at<DeviceSampledToken>(flight.results, sampled_place),
                                    .tokens = at<std::int32_t>(flight.tokens, 0),
                                    .tops = at<TokenLogprob>(flight.results, tops_place)};
  sample_rows(arguments, stream_);
  sample_on_host(flight, logits, rows);
  check(cudaMemcpyAsync(flight.host_results.data(), flight.results.data(), results.size(), cudaMemcpyDeviceToHost,
                        stream_));
  check(cudaEventRecord(flight.done.get(), stream_));
  flight.tops_place = tops_place;
  last_tokens_ = arguments.tokens;
  next_ = (next_ + 1) % flights_.size();
  ++num_launched_;
}

void Sampler::sample_on_host(Flight& flight, Activation& logits, std::span<const SamplingRow> rows) {
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (!flight.rows[r].is_skipped) continue;
    Tensor row = to_host(logits.values.view().rows(static_cast<std::int64_t>(r), 1), stream_);
    flight.out[r] = sample_row(row.span<float>(), rows[r]);
    check(cudaMemcpyAsync(at<std::int32_t>(flight.tokens, r * sizeof(std::int32_t)), &flight.out[r].token,
                          sizeof(std::int32_t), cudaMemcpyHostToDevice, stream_));
  }
}

void Sampler::collect() {
  nibble::check(num_launched_ > 0, "cuda sample: nothing to collect");
  Flight& flight = flights_[(next_ + flights_.size() - num_launched_) % flights_.size()];
  --num_launched_;
  check(cudaEventSynchronize(flight.done.get()));
  const auto* sampled = at<DeviceSampledToken>(flight.host_results, 0);
  const auto* tops = at<TokenLogprob>(flight.host_results, flight.tops_place);
  for (std::size_t r = 0; r < flight.rows.size(); ++r) {
    const DeviceSamplingRow& row = flight.rows[r];
    if (row.is_skipped) continue;
    SampledToken& out = flight.out[r];
    out = {.token = sampled[r].token, .logprob = sampled[r].logprob, .is_finite = sampled[r].is_finite != 0};
    if (!out.is_finite) continue;
    for (std::int32_t i = 0; i < row.num_logprobs; ++i) {
      const TokenLogprob& top = tops[row.first_top + i];
      if (top.token >= 0) out.top_logprobs.emplace_back(top.token, top.logprob);
    }
  }
}

}  // namespace nibble::backend::cuda
