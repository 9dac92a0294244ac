#include "backend/cuda/device.h"

#include <algorithm>
#include <string>
#include <utility>

#include "backend/cuda/handles.h"
#include "core/error.h"

namespace nibble::backend::cuda {

namespace {

/// "13.0" of 13000
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

[[noreturn]] void refuse_driver() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
    throw Error(ErrorCode::Unavailable, "this machine has no NVIDIA driver (libcuda.so.1)");
  }
  throw Error(ErrorCode::Unavailable, "the NVIDIA driver goes up to CUDA " + version_text(version) +
                                          ", and nibble needs " + version_text(CUDART_VERSION) + ": update the driver");
}

}  // namespace

std::vector<DeviceProperties> list_devices() {
  int num_devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&num_devices);
  if (status == cudaErrorNoDevice) return {};
  if (status == cudaErrorInsufficientDriver) refuse_driver();
  check(status);
  std::vector<DeviceProperties> devices;
  for (int index = 0; index < num_devices; ++index) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index));
    devices.push_back({index, properties.name, properties.major, properties.minor, properties.totalGlobalMem});
  }
  return devices;
}

Memory device_memory() {
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes));
  return {.total_bytes = static_cast<std::int64_t>(total_bytes),
          .free_bytes = static_cast<std::int64_t>(free_bytes),
          .is_devices_own = true,
          .used_bytes = static_cast<std::int64_t>(total_bytes - free_bytes)};
}

Memory memory_share(Memory now, std::int64_t used_at_start) {
  // The driver does not say whose memory it is. A context takes 0.3 to 0.7 GB on the GPUs of today.
  constexpr std::int64_t kMaxContextBytes = std::int64_t{1} << 30;
  const std::int64_t context = std::min(used_at_start, kMaxContextBytes);
  now.used_bytes = std::max<std::int64_t>(now.used_bytes - used_at_start, 0) + context;
  return now;
}

std::optional<std::string> device_fault() {
  // Asks the device nothing, but an error that ended the context is every call's answer from then on.
  const cudaError_t status = cudaStreamQuery(cudaStreamPerThread);
  if (status == cudaSuccess || status == cudaErrorNotReady) return std::nullopt;
  return std::string("CUDA: ") + cudaGetErrorString(status);
}

Buffer device_buffer(std::size_t size_bytes) {
  int index = 0;
  check(cudaGetDevice(&index));
  if (size_bytes == 0) return Buffer::borrowed(nullptr, 0, {DeviceKind::Cuda, index});
  void* memory = nullptr;
  if (cudaMalloc(&memory, size_bytes) == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // the failure is reported here: later calls must not see it again
    throw Error(ErrorCode::OutOfMemory, "GPU " + std::to_string(index) + ": cannot allocate " +
                                            std::to_string(size_bytes) + " bytes, " +
                                            std::to_string(device_memory().free_bytes) + " are free");
  }
  check(cudaPeekAtLastError());
  return {memory, size_bytes, {DeviceKind::Cuda, index}, [](void* data, void*) { cudaFree(data); }};
}

Buffer pinned_buffer(std::size_t size_bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, size_bytes));
  return {memory, size_bytes, {}, [](void* data, void*) { cudaFreeHost(data); }};
}

Tensor to_device(TensorView from, cudaStream_t stream) {
  nibble::check(from.is_contiguous(), "to_device of a strided view");
  Buffer buffer = device_buffer(from.size_bytes());
  check(cudaMemcpyAsync(buffer.data(), from.data(), from.size_bytes(), cudaMemcpyDefault, stream));
  check(cudaStreamSynchronize(stream));
  return {std::move(buffer), from.dtype(), from.shape()};
}

Tensor to_host(TensorView device, cudaStream_t stream) {
  nibble::check(device.is_contiguous() && device.device().kind == DeviceKind::Cuda,
                "to_host of a strided or host view");
  Tensor host = Tensor::empty(device.dtype(), device.shape());
  check(
      cudaMemcpyAsync(host.mutable_view().data(), device.data(), device.size_bytes(), cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  return host;
}

bool can_overlap_launches() {
  // Asked once: a process runs on one kind of GPU.
  static const bool can = [] {
    int device = 0;
    int major = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    return major >= 9;
  }();
  return can;
}

Stream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(stream);
}

Event make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}

void throw_cuda_error(cudaError_t status, std::source_location at) {
  const auto code = [&] {
    switch (status) {
      case cudaErrorMemoryAllocation: return ErrorCode::OutOfMemory;
      case cudaErrorNoDevice:
      case cudaErrorInsufficientDriver:
      case cudaErrorSystemDriverMismatch:
      case cudaErrorDevicesUnavailable: return ErrorCode::Unavailable;
      default: return ErrorCode::Internal;
    }
  }();
  std::string message = std::string("CUDA: ") + cudaGetErrorString(status);
  if (code == ErrorCode::Internal) {
    message += std::string(" (") + at.file_name() + ":" + std::to_string(at.line()) + ")";
  }
  throw Error(code, std::move(message));
}

}  // namespace nibble::backend::cuda
