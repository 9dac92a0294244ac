#include <algorithm>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/plugin.h"

namespace nibble::backend::cuda {
namespace {

/// Why there is no backend on this machine: what a user must know first comes first.
std::string reason(std::uint32_t version) {
  if (version != kPluginVersion) {
    return "built for another nibble (plug-in version " + std::to_string(kPluginVersion) + ", nibble wants " +
           std::to_string(version) + "): rebuild both";
  }
  const std::vector<DeviceProperties> devices = list_devices();
  if (devices.empty()) return "this machine shows no NVIDIA GPU: use --device cpu";
  return "found " + devices.front().name +
         ", but the CUDA backend does not run models yet (memory and norm are there): use --device cpu";
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
    std::uint32_t version, const nibble::backend::BackendOptions& /*options*/, char* message,
    std::size_t message_capacity) {
  using namespace nibble::backend::cuda;
  try {
    write_message(reason(version), message, message_capacity);
  } catch (const std::exception& error) {
    write_message(std::string(error.what()) + ": use --device cpu", message, message_capacity);
  }
  return nullptr;
}
