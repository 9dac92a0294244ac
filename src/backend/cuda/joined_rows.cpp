#include "backend/cuda/joined_rows.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "core/error.h"

namespace nibble::backend::cuda {

Tensor join_rows(std::span<const TensorView> parts, cudaStream_t stream) {
  std::int64_t rows = 0;
  std::size_t size_bytes = 0;
  const TensorView& first = parts.front();
  for (const TensorView& part : parts) {
    nibble::check(part.dtype() == first.dtype() && part.shape()[1] == first.shape()[1] && part.is_contiguous(),
                  "joined parts are alike");
    rows += part.shape()[0];
    size_bytes += part.size_bytes();
  }
  Buffer joined = device_buffer(size_bytes);
  auto* to = static_cast<std::byte*>(joined.data());
  for (const TensorView& part : parts) {
    check(cudaMemcpyAsync(to, part.data(), part.size_bytes(), cudaMemcpyDefault, stream));
    to += part.size_bytes();
  }
  check(cudaStreamSynchronize(stream));
  return {std::move(joined), first.dtype(), {rows, first.shape()[1]}};
}

Tensor join_padded_rows(std::span<const TensorView> parts, const PaddedRows& padded, cudaStream_t stream) {
  std::int64_t rows = 0;
  for (const TensorView& part : parts) rows += part.shape()[0];
  rows = (rows + padded.row_multiple - 1) / padded.row_multiple * padded.row_multiple;
  const auto pitch = static_cast<std::size_t>(padded.row_bytes);
  Buffer joined = device_buffer(static_cast<std::size_t>(rows) * pitch);
  check(cudaMemsetAsync(joined.data(), 0, joined.size_bytes(), stream));
  auto* to = static_cast<std::byte*>(joined.data());
  for (const TensorView& part : parts) {
    const auto count = static_cast<std::size_t>(part.shape()[0]);
    const std::size_t row_bytes = part.size_bytes() / count;
    nibble::check(row_bytes <= pitch && part.is_contiguous(), "rows that fit their padding");
    if (row_bytes == pitch) {
      check(cudaMemcpyAsync(to, part.data(), part.size_bytes(), cudaMemcpyDefault, stream));
    } else {
      check(cudaMemcpy2DAsync(to, pitch, part.data(), row_bytes, row_bytes, count, cudaMemcpyDefault, stream));
    }
    to += count * pitch;
  }
  check(cudaStreamSynchronize(stream));  // the caller may free the parts
  return {std::move(joined), DType::U8, {rows, padded.row_bytes}};
}

Tensor join_scales(std::span<const TensorView> parts, cudaStream_t stream) {
  if (std::ranges::all_of(parts, [](const TensorView& part) { return part.dtype() == DType::F16; })) {
    return join_rows(parts, stream);
  }
  std::vector<Tensor> converted;
  for (const TensorView& part : parts) converted.push_back(to_dtype(part, DType::F32));
  return join_rows(std::vector<TensorView>(converted.begin(), converted.end()), stream);
}

}  // namespace nibble::backend::cuda
