#include "verify/values.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <vector>

namespace nibble::verify {
namespace {

/// f16 below this has fewer than four significant bits: 2^-24 is its smallest.
constexpr float kSmallestUsefulHalf = 0x1p-21f;
constexpr std::int64_t kChunk = 4096;

bool ends_with_any(std::string_view name, std::span<const std::string_view> suffixes) {
  return std::ranges::any_of(suffixes, [&](std::string_view suffix) { return name.ends_with(suffix); });
}

/// Scales of integer grids may be negative (guided rounding makes such), those of floats not.
bool is_grid_scale(std::string_view name) {
  constexpr std::array<std::string_view, 2> kSuffixes{".scales", ".weight_scale"};
  return ends_with_any(name, kSuffixes);
}

bool is_positive_scale(std::string_view name) {
  constexpr std::array<std::string_view, 6> kSuffixes{".weight_scale_inv", ".input_scale", ".k_scale",
                                                      ".v_scale",          ".kv_scale",    ".output_scale"};
  return ends_with_any(name, kSuffixes);
}

std::string element(std::int64_t index, const Shape& shape) {
  std::vector<std::int64_t> place(static_cast<std::size_t>(shape.rank()));
  for (int d = shape.rank() - 1; d >= 0; --d) {
    place[static_cast<std::size_t>(d)] = index % shape[d];
    index /= shape[d];
  }
  return fmt::format("[{}]", fmt::join(place, ", "));
}

/// What is wrong with one number, or nullptr.
const char* fault_of(float value, std::string_view name, DType dtype) {
  if (std::isnan(value)) return "is NaN";
  if (std::isinf(value)) return "is infinite";
  const bool is_scale = is_grid_scale(name) || is_positive_scale(name);
  if (!is_scale) return nullptr;
  if (value == 0) return "is a scale of zero";
  if (value < 0 && is_positive_scale(name)) return "is a negative scale";
  if (dtype == DType::F16 && std::abs(value) < kSmallestUsefulHalf) {
    return "is a denormal scale with fewer than four significant bits";
  }
  return nullptr;
}

}  // namespace

std::optional<Finding> check_values(const std::string& name, TensorView tensor) {
  if (!is_float(tensor.dtype()) || !tensor.is_contiguous()) return std::nullopt;
  std::array<float, kChunk> values{};
  const auto* bytes = static_cast<const std::byte*>(tensor.data());
  const std::int64_t count = tensor.num_elements();
  for (std::int64_t first = 0; first < count; first += kChunk) {
    const std::int64_t length = std::min(kChunk, count - first);
    to_float32(bytes + first * static_cast<std::int64_t>(size_bytes(tensor.dtype())), tensor.dtype(), length,
               values.data());
    for (std::int64_t i = 0; i < length; ++i) {
      const char* fault = fault_of(values[static_cast<std::size_t>(i)], name, tensor.dtype());
      if (fault != nullptr) return Finding{name, fmt::format("{} {}", element(first + i, tensor.shape()), fault)};
    }
  }
  return std::nullopt;
}

}  // namespace nibble::verify
