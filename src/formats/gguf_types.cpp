#include "formats/gguf_types.h"

#include <array>
#include <cstring>

#include "core/dtype.h"
#include "core/error.h"

// Layouts of blocks: ggml's quants, as formats.md §8 describes them. Products and sums are rounded one by one, in
// gguf-py's order (CMakeLists.txt forbids fusing them here).
namespace nibble::formats {
namespace {

constexpr int kBlock = 32;        // elements of the plain types
constexpr int kSuperBlock = 256;  // elements of the K types

std::uint8_t byte_at(const std::byte* block, int offset) {
  return static_cast<std::uint8_t>(block[offset]);
}

float half_at(const std::byte* block, int offset) {
  Half value;
  std::memcpy(&value.bits, block + offset, 2);
  return to_float(value);
}

/// Low nibbles of 16 bytes are elements 0…15, high nibbles 16…31.
int nibble_at(const std::byte* nibbles, int element) {
  const int byte = byte_at(nibbles, element % 16);
  return element < 16 ? byte & 15 : byte >> 4;
}

void dequantize_f32(const std::byte* block, float* values) {
  std::memcpy(values, block, 4);
}

void dequantize_f16(const std::byte* block, float* values) {
  *values = half_at(block, 0);
}

void dequantize_bf16(const std::byte* block, float* values) {
  BFloat16 value;
  std::memcpy(&value.bits, block, 2);
  *values = to_float(value);
}

// f16 d, 16 bytes of nibbles
void dequantize_q4_0(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int j = 0; j < kBlock; ++j) values[j] = d * static_cast<float>(nibble_at(block + 2, j) - 8);
}

// f16 d, f16 m, 16 bytes of nibbles
void dequantize_q4_1(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  const float m = half_at(block, 2);
  for (int j = 0; j < kBlock; ++j) values[j] = d * static_cast<float>(nibble_at(block + 4, j)) + m;
}

int fifth_bit(const std::byte* bits, int element) {
  return ((byte_at(bits, element / 8) >> (element % 8)) & 1) << 4;
}

// f16 d, u32 of fifth bits, 16 bytes of nibbles
void dequantize_q5_0(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int j = 0; j < kBlock; ++j) {
    values[j] = d * static_cast<float>((nibble_at(block + 6, j) | fifth_bit(block + 2, j)) - 16);
  }
}

// f16 d, f16 m, u32 of fifth bits, 16 bytes of nibbles
void dequantize_q5_1(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  const float m = half_at(block, 2);
  for (int j = 0; j < kBlock; ++j) {
    values[j] = d * static_cast<float>(nibble_at(block + 8, j) | fifth_bit(block + 4, j)) + m;
  }
}

// f16 d, 32 int8
void dequantize_q8_0(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int j = 0; j < kBlock; ++j) {
    values[j] = d * static_cast<float>(static_cast<std::int8_t>(byte_at(block, 2 + j)));
  }
}

/// Scale and minimum of sub-block i of 8, six bits each in 12 bytes.
struct ScaleAndMinimum {
  int scale;
  int minimum;
};

ScaleAndMinimum scale_and_minimum(const std::byte* s, int i) {
  if (i < 4) return {byte_at(s, i) & 63, byte_at(s, i + 4) & 63};
  return {(byte_at(s, i + 4) & 15) | ((byte_at(s, i - 4) >> 6) << 4),
          (byte_at(s, i + 4) >> 4) | ((byte_at(s, i) >> 6) << 4)};
}

/// Nibbles of sub-blocks 2p (low) and 2p+1 (high) share bytes 32p … 32p+31.
int k_nibble(const std::byte* nibbles, int sub_block, int element) {
  const int byte = byte_at(nibbles, sub_block / 2 * 32 + element);
  return sub_block % 2 == 0 ? byte & 15 : byte >> 4;
}

// f16 d, f16 dmin, 12 bytes of scales, 128 bytes of nibbles
void dequantize_q4_k(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  const float dmin = half_at(block, 2);
  for (int i = 0; i < 8; ++i) {
    const auto [scale, minimum] = scale_and_minimum(block + 4, i);
    const float step = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(minimum);
    for (int l = 0; l < 32; ++l) *values++ = step * static_cast<float>(k_nibble(block + 16, i, l)) - offset;
  }
}

// f16 d, f16 dmin, 12 bytes of scales, 32 bytes of fifth bits (bit i for sub-block i), 128 bytes of nibbles
void dequantize_q5_k(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  const float dmin = half_at(block, 2);
  for (int i = 0; i < 8; ++i) {
    const auto [scale, minimum] = scale_and_minimum(block + 4, i);
    const float step = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(minimum);
    for (int l = 0; l < 32; ++l) {
      const int fifth = ((byte_at(block, 16 + l) >> i) & 1) << 4;
      *values++ = step * static_cast<float>(k_nibble(block + 48, i, l) | fifth) - offset;
    }
  }
}

// 128 bytes of low nibbles, 64 bytes of bits 4 and 5, 16 int8 scales, f16 d
void dequantize_q6_k(const std::byte* block, float* values) {
  const float d = half_at(block, 208);
  for (int i = 0; i < kSuperBlock; ++i) {
    const int half = i / 128;
    const int quarter = i % 128 / 32;
    const int l = i % 32;
    const int low_byte = byte_at(block, 64 * half + 32 * (quarter % 2) + l);
    const int low = quarter < 2 ? low_byte & 15 : low_byte >> 4;
    const int high = (byte_at(block, 128 + 32 * half + l) >> (2 * quarter)) & 3;
    const auto scale = static_cast<std::int8_t>(byte_at(block, 192 + i / 16));
    values[i] = d * static_cast<float>(scale) * static_cast<float>((low | high << 4) - 32);
  }
}

constexpr std::array kTypes{
    GgufTypeLayout{GgufType::F32, "F32", 1, 4, dequantize_f32},
    GgufTypeLayout{GgufType::F16, "F16", 1, 2, dequantize_f16},
    GgufTypeLayout{GgufType::BF16, "BF16", 1, 2, dequantize_bf16},
    GgufTypeLayout{GgufType::Q4_0, "Q4_0", 32, 18, dequantize_q4_0},
    GgufTypeLayout{GgufType::Q4_1, "Q4_1", 32, 20, dequantize_q4_1},
    GgufTypeLayout{GgufType::Q5_0, "Q5_0", 32, 22, dequantize_q5_0},
    GgufTypeLayout{GgufType::Q5_1, "Q5_1", 32, 24, dequantize_q5_1},
    GgufTypeLayout{GgufType::Q8_0, "Q8_0", 32, 34, dequantize_q8_0},
    GgufTypeLayout{GgufType::Q4_K, "Q4_K", 256, 144, dequantize_q4_k},
    GgufTypeLayout{GgufType::Q5_K, "Q5_K", 256, 176, dequantize_q5_k},
    GgufTypeLayout{GgufType::Q6_K, "Q6_K", 256, 210, dequantize_q6_k},
};

}  // namespace

const GgufTypeLayout* find_gguf_type(std::uint32_t number) {
  for (const GgufTypeLayout& layout : kTypes) {
    if (static_cast<std::uint32_t>(layout.type) == number) return &layout;
  }
  return nullptr;
}

const GgufTypeLayout& layout_of(GgufType type) {
  const GgufTypeLayout* layout = find_gguf_type(static_cast<std::uint32_t>(type));
  check(layout != nullptr, "a GgufType without a row in kTypes");
  return *layout;
}

void dequantize_gguf(GgufType type, std::span<const std::byte> blocks, std::span<float> values) {
  const GgufTypeLayout& layout = layout_of(type);
  const auto num_blocks = static_cast<std::int64_t>(blocks.size()) / layout.block_bytes;
  check(static_cast<std::int64_t>(values.size()) == num_blocks * layout.block_elements,
        "dequantize_gguf: sizes of blocks and values differ");
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    layout.dequantize(blocks.data() + b * layout.block_bytes, values.data() + b * layout.block_elements);
  }
}

}  // namespace nibble::formats
