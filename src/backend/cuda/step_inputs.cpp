#include "backend/cuda/step_inputs.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "backend/cuda/device.h"

namespace nibble::backend::cuda {
namespace {

/// Copies spans one after another into host memory; where each begins holds for the device copy as well.
class Layout {
 public:
  explicit Layout(std::byte* host) : host_(host) {}

  template <class T>
  std::size_t place(std::span<const T> values) {
    const std::size_t begin = size_;
    if (host_ != nullptr) std::memcpy(host_ + begin, values.data(), values.size_bytes());
    size_ += values.size_bytes();
    return begin;
  }
  std::size_t size() const { return size_; }

 private:
  std::byte* host_;
  std::size_t size_ = 0;
};

}  // namespace

StepInputs::StepInputs() : uploaded_(make_event()) {}

void StepInputs::reserve(std::size_t size_bytes) {
  if (host_.size_bytes() >= size_bytes) return;
  const std::size_t size = std::max(size_bytes, 2 * host_.size_bytes());
  host_ = pinned_buffer(size);
  device_ = device_buffer(size);
}

void StepInputs::upload(const ForwardBatch& batch, cudaStream_t stream) {
  const std::size_t num_tokens = batch.tokens.size();
  reserve(num_tokens * (sizeof(std::int64_t) + 3 * sizeof(std::int32_t)) + batch.block_table.size_bytes() +
          batch.logit_rows.size_bytes() + 1);
  check(cudaEventSynchronize(uploaded_.get()));
  auto* host = static_cast<std::byte*>(host_.data());
  Layout layout(host);
  const std::size_t slots = layout.place(batch.slot_mapping);  // first: of the widest type
  const std::size_t tokens = layout.place(batch.tokens);
  const std::size_t positions = layout.place(batch.positions);
  const std::size_t table = layout.place(batch.block_table);
  const std::size_t rows = layout.place(batch.logit_rows);
  const std::size_t sequences = layout.size();
  auto* sequence_of = reinterpret_cast<std::int32_t*>(host + sequences);
  for (std::int32_t s = 0; s < batch.num_sequences(); ++s) {
    const auto sequence = static_cast<std::size_t>(s);
    std::fill(sequence_of + batch.query_start[sequence], sequence_of + batch.query_start[sequence + 1], s);
  }
  const std::size_t size = sequences + num_tokens * sizeof(std::int32_t);
  check(cudaMemcpyAsync(device_.data(), host, size, cudaMemcpyHostToDevice, stream));
  check(cudaEventRecord(uploaded_.get(), stream));
  const auto* device = static_cast<const std::byte*>(device_.data());
  batch_ = {.slot_mapping = reinterpret_cast<const std::int64_t*>(device + slots),
            .tokens = reinterpret_cast<const std::int32_t*>(device + tokens),
            .positions = reinterpret_cast<const std::int32_t*>(device + positions),
            .sequence_of = reinterpret_cast<const std::int32_t*>(device + sequences),
            .block_table = reinterpret_cast<const std::int32_t*>(device + table),
            .logit_rows = reinterpret_cast<const std::int32_t*>(device + rows),
            .block_table_stride = batch.block_table_stride,
            .num_tokens = batch.num_tokens(),
            .num_logit_rows = static_cast<std::int64_t>(batch.logit_rows.size())};
}

}  // namespace nibble::backend::cuda
