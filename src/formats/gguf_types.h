#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace nibble::formats {

/// Tensor types of GGUF that nibble reads, by their number in the file.
enum class GgufType : std::uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  BF16 = 30,
};

/// How a type stores a block of consecutive elements of a row.
struct GgufTypeLayout {
  GgufType type;
  std::string_view name;  // "Q4_0"
  std::int64_t block_elements;
  std::int64_t block_bytes;
  void (*dequantize)(const std::byte* block, float* values);
};

/// Nothing for a type that nibble does not read.
const GgufTypeLayout* find_gguf_type(std::uint32_t number);
const GgufTypeLayout& layout_of(GgufType type);

/// Elements of whole blocks as f32, bit for bit what gguf-py computes. `values` has block_elements for each block.
void dequantize_gguf(GgufType type, std::span<const std::byte> blocks, std::span<float> values);

}  // namespace nibble::formats
