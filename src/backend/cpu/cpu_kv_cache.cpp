#include "backend/cpu/cpu_kv_cache.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace nibble::backend::cpu {
namespace {

void unmap(void* data, void* context) {
  munmap(data, reinterpret_cast<std::size_t>(context));
}

Buffer map_zero_pages(std::size_t size_bytes) {
  if (size_bytes == 0) return {};
  void* data = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    throw Error(ErrorCode::OutOfMemory, "KV cache of " + std::to_string(size_bytes >> 20) + " MiB: " +
                                            std::strerror(errno) + "; give a smaller --kv-cache-memory-bytes");
  }
  return {data, size_bytes, {}, unmap, reinterpret_cast<void*>(size_bytes)};
}

template <class T>
void scatter(const T* from, std::int64_t count, T* to, std::int64_t stride) {
  for (std::int64_t j = 0; j < count; ++j) to[j * stride] = from[j];
}

}  // namespace

CpuKvCache::CpuKvCache(std::vector<KvSpec> layers, std::int64_t num_blocks, std::int32_t block_size)
    : KvCache(std::move(layers), num_blocks, block_size) {
  if (block_size <= 0 || block_size % 16 != 0) {
    throw Error(ErrorCode::Unsupported,
                "KV block size " + std::to_string(block_size) + ": the CPU backend takes multiples of 16");
  }
  std::int64_t size_bytes = 0;
  for (std::int64_t l = 0; l < num_layers(); ++l) {
    const KvSpec& spec = layer(l);
    if (!is_float(spec.dtype)) {
      throw Error(ErrorCode::Unsupported, "KV cache as " + std::string(nibble::name(spec.dtype)) +
                                              ": the CPU backend holds it as f16, bf16, f32 or f8_e4m3");
    }
    const std::int64_t key_elements = std::int64_t{spec.head_dim} * block_size;
    const std::int64_t value_elements = padded_head_dim(spec.head_dim) * block_size;
    offsets_.push_back({size_bytes, key_elements, value_elements});
    size_bytes += num_blocks * spec.num_kv_heads * (key_elements + value_elements) *
                  static_cast<std::int64_t>(nibble::size_bytes(spec.dtype));
  }
  memory_ = map_zero_pages(static_cast<std::size_t>(size_bytes));
}

std::byte* CpuKvCache::head_data(std::int64_t layer_idx, std::int64_t block, std::int64_t kv_head) const {
  const Layer& at = offsets_[static_cast<std::size_t>(layer_idx)];
  const KvSpec& spec = layer(layer_idx);
  const std::int64_t elements = (block * spec.num_kv_heads + kv_head) * (at.key_elements + at.value_elements);
  return static_cast<std::byte*>(memory_.data()) + at.offset_bytes +
         elements * static_cast<std::int64_t>(size_bytes(spec.dtype));
}

HeadCache CpuKvCache::head(std::int64_t layer_idx, std::int64_t kv_head) const {
  const Layer& at = offsets_[static_cast<std::size_t>(layer_idx)];
  const KvSpec& spec = layer(layer_idx);
  HeadCache head;
  head.keys = head_data(layer_idx, 0, kv_head);
  head.values = head.keys + at.key_elements * static_cast<std::int64_t>(size_bytes(spec.dtype));
  head.block_stride = spec.num_kv_heads * (at.key_elements + at.value_elements);
  head.block_size = block_size();
  head.head_dim = spec.head_dim;
  head.padded_dim = padded_head_dim(spec.head_dim);
  head.dtype = spec.dtype;
  if (spec.dtype == DType::F8E4M3) {
    head.key_scale = spec.k_scale;
    head.value_scale = spec.v_scale;
  }
  return head;
}

void CpuKvCache::write(std::int64_t layer_idx, std::int64_t slot, const float* k, const float* v, std::byte* scratch) {
  const Layer& at = offsets_[static_cast<std::size_t>(layer_idx)];
  const KvSpec& spec = layer(layer_idx);
  const auto element = static_cast<std::int64_t>(size_bytes(spec.dtype));
  const std::int64_t offset = slot % block_size();
  for (std::int64_t h = 0; h < spec.num_kv_heads; ++h) {
    std::byte* keys = head_data(layer_idx, slot / block_size(), h);
    std::byte* values = keys + at.key_elements * element;
    std::byte* value_row = values + offset * padded_head_dim(spec.head_dim) * element;
    if (spec.dtype == DType::F8E4M3) {
      auto* codes = reinterpret_cast<std::uint8_t*>(scratch);
      narrow_row_to_fp8(v + h * spec.head_dim, spec.head_dim, spec.v_scale, reinterpret_cast<std::uint8_t*>(value_row));
      narrow_row_to_fp8(k + h * spec.head_dim, spec.head_dim, spec.k_scale, codes);
      scatter(codes, spec.head_dim, reinterpret_cast<std::uint8_t*>(keys) + offset, block_size());
      continue;
    }
    narrow_row(v + h * spec.head_dim, spec.head_dim, spec.dtype, value_row);
    narrow_row(k + h * spec.head_dim, spec.head_dim, spec.dtype, scratch);
    if (spec.dtype == DType::F32) {
      scatter(reinterpret_cast<const float*>(scratch), spec.head_dim, reinterpret_cast<float*>(keys) + offset,
              block_size());
    } else {
      scatter(reinterpret_cast<const std::uint16_t*>(scratch), spec.head_dim,
              reinterpret_cast<std::uint16_t*>(keys) + offset, block_size());
    }
  }
}

}  // namespace nibble::backend::cpu
