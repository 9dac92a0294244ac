#include "backend/cuda/uploader.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <variant>

#include "backend/cuda/device.h"
#include "backend/cuda/element.cuh"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

// Two of them take 20 ms to pin; larger ones are no faster.
constexpr std::size_t kStagingBytes = std::size_t{16} << 20;
// What one thread copies at a time.
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
// Below this the driver's own staging is as quick.
constexpr std::size_t kMinStagedBytes = std::size_t{1} << 18;

constexpr int kThreads = 256;
constexpr unsigned kBlocks = 1024;

/// Sets *has_overflow where a finite number becomes infinite.
template <class From, class To>
__global__ void convert_kernel(const From* from, std::int64_t count, To* to, int* has_overflow) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  bool overflows = false;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const auto value = static_cast<float>(from[i]);
    to[i] = static_cast<To>(value);
    overflows = overflows || !isfinite(static_cast<float>(to[i]));
  }
  if (overflows) *has_overflow = 1;
}

void launch_convert(const Tensor& from, Tensor& to, int* has_overflow, cudaStream_t stream) {
  with_dtype(from.dtype(), "upload", [&](auto source) {
    with_dtype(to.dtype(), "upload", [&](auto target) {
      convert_kernel<<<kBlocks, kThreads, 0, stream>>>(
          static_cast<const decltype(source)*>(from.view().data()), from.num_elements(),
          static_cast<decltype(target)*>(to.mutable_view().data()), has_overflow);
    });
  });
  check(cudaGetLastError());
}

}  // namespace

Uploader::~Uploader() {
  for (const Event& sent : sent_) {
    if (sent != nullptr) cudaEventSynchronize(sent.get());  // the buffers go
  }
}

Tensor Uploader::upload(TensorView host) {
  nibble::check(host.is_contiguous() && host.device().kind == DeviceKind::Host, "upload of a contiguous host tensor");
  Buffer buffer = device_buffer(host.size_bytes());
  if (host.size_bytes() < kMinStagedBytes) {
    check(cudaMemcpyAsync(buffer.data(), host.data(), host.size_bytes(), cudaMemcpyHostToDevice, stream_));
  } else {
    copy_staged(static_cast<std::byte*>(buffer.data()), static_cast<const std::byte*>(host.data()), host.size_bytes());
  }
  return {std::move(buffer), host.dtype(), host.shape()};
}

void Uploader::copy_staged(std::byte* to, const std::byte* from, std::size_t size_bytes) {
  for (std::size_t begin = 0; begin < size_bytes; begin += kStagingBytes) {
    const std::size_t count = std::min(kStagingBytes, size_bytes - begin);
    PinnedMemory& buffer = staging_[next_];
    Event& sent = sent_[next_];
    next_ = 1 - next_;
    if (buffer == nullptr) {
      void* memory = nullptr;
      check(cudaHostAlloc(&memory, kStagingBytes, cudaHostAllocDefault));
      buffer.reset(static_cast<std::byte*>(memory));
      sent = make_event();
    }
    check(cudaEventSynchronize(sent.get()));
    pool_.run(static_cast<std::int64_t>((count + kPieceBytes - 1) / kPieceBytes), [&](std::int64_t piece, int) {
      const std::size_t at = static_cast<std::size_t>(piece) * kPieceBytes;
      std::memcpy(buffer.get() + at, from + begin + at, std::min(kPieceBytes, count - at));
    });
    check(cudaMemcpyAsync(to + begin, buffer.get(), count, cudaMemcpyHostToDevice, stream_));
    check(cudaEventRecord(sent.get(), stream_));
  }
}

Tensor Uploader::upload_as(TensorView host, DType dtype) {
  Tensor stored = upload(host);
  if (dtype == host.dtype()) return stored;
  Tensor converted(device_buffer(static_cast<std::size_t>(host.num_elements()) * size_bytes(dtype)), dtype,
                   host.shape());
  Buffer flag = device_buffer(sizeof(int));
  check(cudaMemsetAsync(flag.data(), 0, sizeof(int), stream_));
  launch_convert(stored, converted, static_cast<int*>(flag.data()), stream_);
  int has_overflow = 0;
  check(cudaMemcpyAsync(&has_overflow, flag.data(), sizeof(int), cudaMemcpyDeviceToHost, stream_));
  check(cudaStreamSynchronize(stream_));
  if (dtype == DType::F16 && has_overflow != 0) {
    throw Error(ErrorCode::Unsupported,
                "holds weights beyond f16's range (65504), and CUDA runs f16 so far: use --device cpu");
  }
  return converted;
}

void Uploader::upload(std::vector<weights::LinearPart>& parts, DType dtype) {
  const auto send = [&](Tensor& tensor) {
    if (!tensor.is_empty() && tensor.device().kind == DeviceKind::Host) tensor = upload(tensor);
  };
  for (weights::LinearPart& part : parts) {
    if (auto* dense = std::get_if<weights::DenseWeights>(&part.weights)) {
      if (dense->weight.device().kind == DeviceKind::Host) dense->weight = upload_as(dense->weight, dtype);
    }
    if (auto* ints = std::get_if<weights::GroupedIntWeights>(&part.weights)) send(ints->codes);
    if (auto* codebook = std::get_if<weights::CodebookWeights>(&part.weights)) send(codebook->codes);
    if (auto* fp8 = std::get_if<weights::Fp8Weights>(&part.weights)) send(fp8->weight);
  }
}

}  // namespace nibble::backend::cuda
