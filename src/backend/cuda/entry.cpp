#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "backend/plugin.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

/// Errors: Unavailable, with what a user must know first.
std::unique_ptr<Backend> make_backend_here(std::uint32_t version, const BackendOptions& options) {
  if (version != kPluginVersion) {
    throw Error(ErrorCode::Unavailable, "built for another nibble (plug-in version " + std::to_string(kPluginVersion) +
                                            ", nibble wants " + std::to_string(version) + "): rebuild both");
  }
  const std::vector<DeviceProperties> devices = list_devices();
  if (devices.empty()) throw Error(ErrorCode::Unavailable, "this machine shows no NVIDIA GPU");
  const DeviceProperties& first = devices.front();
  if (first.compute_major != 9 || first.compute_minor != 0) {
    throw Error(ErrorCode::Unavailable, first.name + " has compute capability " + std::to_string(first.compute_major) +
                                            "." + std::to_string(first.compute_minor) +
                                            ", and kernels are built for 9.0 alone (H100, H200)");
  }
  return make_cuda_backend(options);
}

void write_message(const std::string& text, char* message, std::size_t capacity) {
  if (capacity == 0) return;
  const std::size_t length = std::min(text.size(), capacity - 1);
  std::memcpy(message, text.data(), length);
  message[length] = '\0';
}

}  // namespace
}  // namespace nibble::backend::cuda

extern "C" __attribute__((visibility("default"))) nibble::backend::Backend* nibble_backend_plugin(
    std::uint32_t version, const nibble::backend::BackendOptions& options, char* message,
    std::size_t message_capacity) {
  using namespace nibble::backend::cuda;
  try {
    return make_backend_here(version, options).release();
  } catch (const std::exception& error) {
    write_message(std::string(error.what()) + ": use --device cpu", message, message_capacity);
  }
  return nullptr;
}
