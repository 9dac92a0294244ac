#include <array>
#include <string>

#include "backend/backend.h"
#include "backend/plugin.h"
#include "backend/reference/reference_backend.h"
#ifdef NIBBLE_HAS_CPU_BACKEND
#include "backend/cpu/cpu_backend.h"
#endif

namespace nibble::backend {
namespace {

struct Row {
  std::string_view name;
  std::unique_ptr<Backend> (*make)(const BackendOptions& options);
};

constexpr std::array kBackends{
#ifdef NIBBLE_HAS_CPU_BACKEND
    Row{"cpu", make_cpu_backend},
#endif
    Row{"reference", make_reference_backend},
};

}  // namespace

std::unique_ptr<Backend> make_backend(std::string_view name, const BackendOptions& options) {
  const std::string_view wanted = name == "auto" ? kBackends.front().name : name;
  for (const Row& row : kBackends) {
    if (row.name == wanted) return row.make(options);
  }
  if (wanted == "cuda") return open_plugin("libnibble_cuda.so", options);
  throw Error(ErrorCode::InvalidArgument,
              "--device " + std::string(name) + ": unknown device; choose auto, cpu, reference or cuda");
}

std::int64_t kv_block_bytes(std::span<const KvSpec> layers, std::int32_t block_size) {
  std::int64_t bytes = 0;
  for (const KvSpec& layer : layers) {
    bytes += 2 * std::int64_t{layer.num_kv_heads} * layer.head_dim * block_size *
             static_cast<std::int64_t>(size_bytes(layer.dtype));
  }
  return bytes;
}

}  // namespace nibble::backend
