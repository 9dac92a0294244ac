#include "backend/cuda/quantized_parts.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"

namespace nibble::backend::cuda {
namespace {

Tensor pad_on_device(TensorView codes, std::int64_t padded_bytes, cudaStream_t stream) {
  const auto rows = static_cast<std::size_t>(codes.shape()[0]);
  const auto row_bytes = static_cast<std::size_t>(codes.shape()[1]);
  const auto pitch = static_cast<std::size_t>(padded_bytes);
  Buffer padded = device_buffer(rows * pitch);
  check(cudaMemsetAsync(padded.data(), 0, padded.size_bytes(), stream));
  check(cudaMemcpy2DAsync(padded.data(), pitch, codes.data(), row_bytes, std::min(row_bytes, pitch), rows,
                          cudaMemcpyDeviceToDevice, stream));
  check(cudaStreamSynchronize(stream));  // the caller may free `codes`
  return {std::move(padded), DType::U8, {codes.shape()[0], padded_bytes}};
}

}  // namespace

Tensor upload_codes(TensorView codes, std::int64_t in_features, std::int32_t bits, cudaStream_t stream) {
  const std::int64_t rows = codes.shape()[0];
  const std::int64_t row_bytes = codes.shape()[1];
  const std::int64_t padded_bytes = num_chunks(in_features) * 4 * bits;
  if (row_bytes == padded_bytes) return to_device(codes, stream);
  if (codes.device().kind == DeviceKind::Cuda) return pad_on_device(codes, padded_bytes, stream);
  Tensor padded = Tensor::zeros(DType::U8, {rows, padded_bytes});
  const auto* from = static_cast<const std::byte*>(codes.data());
  auto* to = static_cast<std::byte*>(padded.mutable_view().data());
  for (std::int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + r * padded_bytes, from + r * row_bytes,
                static_cast<std::size_t>(std::min(row_bytes, padded_bytes)));
  }
  return to_device(padded, stream);
}

}  // namespace nibble::backend::cuda
