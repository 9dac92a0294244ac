#include "backend/cuda/kv_cache.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "backend/cuda/attention.h"
#include "backend/cuda/device.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

// What vectors of any dtype are aligned to.
constexpr std::size_t kAlignment = 256;

std::size_t aligned(std::size_t size_bytes) {
  return (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
}

void check_spec(const KvSpec& spec) {
  if (spec.head_dim > kMaxHeadDim) {
    throw Error(ErrorCode::Unsupported, "cuda attention: head_dim " + std::to_string(spec.head_dim) + " is above " +
                                            std::to_string(kMaxHeadDim) + "; use --device cpu");
  }
  const auto is_dtype = [&](DType dtype) { return spec.dtype == dtype; };
  if (std::ranges::none_of(std::array{DType::F32, DType::F16, DType::BF16, DType::F8E4M3}, is_dtype)) {
    throw Error(ErrorCode::Unsupported, "cuda attention: the KV cache is f32, f16, bf16 or fp8; see --kv-cache-dtype");
  }
}

}  // namespace

CudaKvCache::CudaKvCache(std::vector<KvSpec> specs, std::int64_t num_blocks, std::int32_t block_size)
    : KvCache(std::move(specs), num_blocks, block_size) {
  std::vector<std::size_t> sizes;
  std::size_t total = 0;
  for (std::int64_t l = 0; l < num_layers(); ++l) {
    const KvSpec& spec = layer(l);
    check_spec(spec);
    const std::int64_t elements = num_blocks * block_size * spec.num_kv_heads * spec.head_dim;
    sizes.push_back(aligned(static_cast<std::size_t>(elements) * size_bytes(spec.dtype)));
    total += 2 * sizes.back();
  }
  pool_ = device_buffer(total);
  auto* next = static_cast<std::byte*>(pool_.data());
  for (const std::size_t size : sizes) {
    keys_.push_back(std::exchange(next, next + size));
    values_.push_back(std::exchange(next, next + size));
  }
}

}  // namespace nibble::backend::cuda
