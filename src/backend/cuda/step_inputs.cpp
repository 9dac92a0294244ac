#include "backend/cuda/step_inputs.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "backend/cuda/device.h"

namespace nibble::backend::cuda {
namespace {

// Up to here the copy of a block table's unused columns costs less than a second copy.
constexpr std::size_t kOneCopyBytes = 64 << 10;

/// Places of arrays one behind another, the same in the host's memory and in the device's.
class Layout {
 public:
  Layout(std::byte* host, std::byte* device) : host_(host), device_(device) {}

  template <class T>
  struct Place {
    std::span<T> host;
    T* device = nullptr;
  };

  template <class T>
  Place<T> place(std::int64_t count) {
    const std::size_t begin = size_;
    size_ += static_cast<std::size_t>(count) * sizeof(T);
    return {{reinterpret_cast<T*>(host_ + begin), static_cast<std::size_t>(count)},
            reinterpret_cast<T*>(device_ + begin)};
  }
  std::size_t size() const { return size_; }

 private:
  std::byte* host_;
  std::byte* device_;
  std::size_t size_ = 0;
};

struct Counts {
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
  std::int64_t logit_rows = 0;
  std::int64_t table_entries = 0;

  std::size_t size_bytes() const {
    return static_cast<std::size_t>(tokens) * (sizeof(std::int64_t) + 4 * sizeof(std::int32_t)) +
           static_cast<std::size_t>(2 * sequences + 1 + logit_rows + table_entries) * sizeof(std::int32_t);
  }
};

/// `values`, then `padding` to the end.
template <class T>
void fill(std::span<T> to, std::span<const T> values, T padding) {
  const auto rest = std::ranges::copy(values, to.begin()).out;
  std::fill(rest, to.end(), padding);
}

}  // namespace

StepInputs::StepInputs() : uploaded_(make_event()) {}

void StepInputs::reserve(const StepLimits& limits) {
  // Every token of a step may want its logits.
  reserve(Counts{.tokens = limits.max_tokens,
                 .sequences = limits.max_sequences,
                 .logit_rows = limits.max_tokens,
                 .table_entries = limits.max_sequences * limits.max_blocks_per_sequence}
              .size_bytes());
}

void StepInputs::reserve(std::size_t size_bytes) {
  if (host_.size_bytes() >= size_bytes) return;
  check(cudaEventSynchronize(uploaded_.get()));
  const std::size_t size = std::max(size_bytes, 2 * host_.size_bytes());
  host_ = pinned_buffer(size);
  device_ = device_buffer(size);
  ++generation_;
}

void StepInputs::upload(const ForwardBatch& batch, std::int64_t padded_size, std::int64_t block_table_stride,
                        cudaStream_t stream) {
  const bool is_padded = padded_size > 0;
  const Counts counts{.tokens = is_padded ? padded_size : batch.num_tokens(),
                      .sequences = is_padded ? padded_size : batch.num_sequences(),
                      .logit_rows = is_padded ? padded_size : static_cast<std::int64_t>(batch.logit_rows.size()),
                      .table_entries = (is_padded ? padded_size : batch.num_sequences()) * block_table_stride};
  reserve(counts.size_bytes());
  check(cudaEventSynchronize(uploaded_.get()));
  auto* host = static_cast<std::byte*>(host_.data());
  Layout layout(host, static_cast<std::byte*>(device_.data()));
  const auto slots = layout.place<std::int64_t>(counts.tokens);  // first: of the widest type
  const auto tokens = layout.place<std::int32_t>(counts.tokens);
  const auto sampled_rows = layout.place<std::int32_t>(counts.tokens);
  const auto positions = layout.place<std::int32_t>(counts.tokens);
  const auto sequence_of = layout.place<std::int32_t>(counts.tokens);
  const auto query_start = layout.place<std::int32_t>(counts.sequences + 1);
  const auto context_len = layout.place<std::int32_t>(counts.sequences);
  const auto rows = layout.place<std::int32_t>(counts.logit_rows);
  const std::size_t table_begin = layout.size();
  const auto table = layout.place<std::int32_t>(counts.table_entries);

  fill<std::int64_t>(slots.host, batch.slot_mapping, -1);
  fill<std::int32_t>(tokens.host, batch.tokens, 0);
  fill<std::int32_t>(sampled_rows.host, batch.sampled_rows, -1);
  fill<std::int32_t>(positions.host, batch.positions, 0);
  fill<std::int32_t>(context_len.host, batch.context_len, 0);
  const auto num_sequences = static_cast<std::size_t>(batch.num_sequences());
  std::ranges::copy(batch.query_start, query_start.host.begin());
  std::ranges::copy(batch.logit_rows, rows.host.begin());
  for (std::size_t s = 0; s < num_sequences; ++s) {
    std::fill(sequence_of.host.begin() + batch.query_start[s], sequence_of.host.begin() + batch.query_start[s + 1],
              static_cast<std::int32_t>(s));
    std::ranges::copy(batch.block_table.subspan(s * static_cast<std::size_t>(batch.block_table_stride),
                                                static_cast<std::size_t>(batch.block_table_stride)),
                      table.host.begin() + static_cast<std::ptrdiff_t>(s) * block_table_stride);
  }
  for (std::size_t s = num_sequences; s < static_cast<std::size_t>(counts.sequences); ++s) {
    const auto index = static_cast<std::int32_t>(s);
    sequence_of.host[s] = rows.host[s] = index;
    query_start.host[s + 1] = index + 1;
  }

  if (layout.size() <= kOneCopyBytes || block_table_stride == batch.block_table_stride) {
    check(cudaMemcpyAsync(device_.data(), host, layout.size(), cudaMemcpyHostToDevice, stream));
  } else {
    check(cudaMemcpyAsync(device_.data(), host, table_begin, cudaMemcpyHostToDevice, stream));
    const std::size_t pitch = static_cast<std::size_t>(block_table_stride) * sizeof(std::int32_t);
    check(cudaMemcpy2DAsync(static_cast<std::byte*>(device_.data()) + table_begin, pitch, host + table_begin, pitch,
                            static_cast<std::size_t>(batch.block_table_stride) * sizeof(std::int32_t), num_sequences,
                            cudaMemcpyHostToDevice, stream));
  }
  check(cudaEventRecord(uploaded_.get(), stream));

  num_real_tokens_ = batch.num_tokens();
  batch_ = {.slot_mapping = slots.device,
            .tokens = tokens.device,
            .sampled_rows = batch.sampled_rows.empty() ? nullptr : sampled_rows.device,
            .positions = positions.device,
            .sequence_of = sequence_of.device,
            .query_start = query_start.device,
            .context_len = context_len.device,
            .logit_rows = rows.device,
            .block_table = table.device,
            .block_table_stride = block_table_stride,
            .num_tokens = counts.tokens,
            .num_sequences = counts.sequences,
            .num_logit_rows = counts.logit_rows};
  host_batch_ = {.tokens = tokens.host,
                 .positions = positions.host,
                 .query_start = query_start.host,
                 .context_len = context_len.host,
                 .block_table = table.host,
                 .block_table_stride = block_table_stride,
                 .slot_mapping = slots.host,
                 .logit_rows = rows.host};
}

}  // namespace nibble::backend::cuda
