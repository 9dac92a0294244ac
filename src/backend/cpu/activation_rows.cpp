#include "backend/cpu/activation_rows.h"

#include <algorithm>

#include "backend/cpu/kernels.h"

namespace nibble::backend::cpu {
namespace {

constexpr std::int64_t kRowsPerTask = 4;

/// Columns that share a scale.
std::int64_t fp8_group(const Activation& activation) {
  return activation.format.kind == ActivationKind::Fp8Per128 ? 128 : activation.width();
}

/// The scale that spreads the values over E4M3's range; as vLLM floors it, so that zeros divide.
float fp8_scale_of(const float* values, std::int64_t count) {
  constexpr float kLargest = 448;
  constexpr float kSmallestScale = 1 / (kLargest * 512);
  const float scale = absmax_of_row(values, count) / kLargest;
  return scale < kSmallestScale ? kSmallestScale : scale;  // NaN stays
}

void store_fp8_row(const float* row, std::int64_t t, Activation& out) {
  const std::int64_t group = fp8_group(out);
  auto* codes = reinterpret_cast<std::uint8_t*>(out.values.matrix<Fp8E4M3>().row(t));
  for (std::int64_t first = 0; first < out.width(); first += group) {
    const std::int64_t count = std::min(group, out.width() - first);
    float scale = out.format.static_scale;
    if (out.format.kind != ActivationKind::Fp8Static) {
      scale = fp8_scale_of(row + first, count);
      out.scales.matrix<float>().row(t)[first / group] = scale;
    }
    narrow_row_to_fp8(row + first, count, scale, codes + first);
  }
}

}  // namespace

float* RowStore::begin(std::int64_t t, std::byte* scratch) const {
  return in_place() ? out_.values.matrix<float>().row(t) : reinterpret_cast<float*>(scratch);
}

void RowStore::finish(std::int64_t t, std::byte* scratch) const {
  if (in_place()) return;
  const std::int64_t width = out_.width();
  const auto* row = reinterpret_cast<const float*>(scratch);
  const auto permutation = out_.format.input_permutation;
  const bool is_float = out_.format.kind == ActivationKind::F32;
  if (!permutation.empty()) {
    float* permuted = is_float ? out_.values.matrix<float>().row(t) : reinterpret_cast<float*>(scratch) + width;
    for (std::size_t j = 0; j < permutation.size(); ++j) permuted[j] = row[permutation[j]];
    row = permuted;
  }
  if (is_float) return;
  if (is_fp8(out_.format.kind)) return store_fp8_row(row, t, out_);
  auto* planes = reinterpret_cast<std::int8_t*>(out_.values.matrix<std::int16_t>().row(t));
  quantize_row(row, width, out_.format.group_size, planes, out_.scales.matrix<float>().row(t),
               out_.sums.matrix<std::int32_t>().row(t));
}

void for_each_row(Workspace& workspace, std::int64_t num_rows, FunctionRef<void(std::int64_t, int)> body) {
  if (num_rows <= kRowsPerTask) {
    for (std::int64_t t = 0; t < num_rows; ++t) body(t, 0);
    return;
  }
  workspace.pool.run((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task, int thread) {
    const std::int64_t end = std::min(num_rows, (task + 1) * kRowsPerTask);
    for (std::int64_t t = task * kRowsPerTask; t < end; ++t) body(t, thread);
  });
}

void decode_fp8_activation(const Activation& from, Activation& out, Workspace& workspace) {
  out.num_tokens = from.num_tokens;
  const std::int64_t group = fp8_group(from);
  for_each_row(workspace, from.num_tokens, [&](std::int64_t t, int) {
    float* row = out.values.matrix<float>().row(t);
    to_float32(from.values.view().rows(t, 1).data(), DType::F8E4M3, from.width(), row);
    for (std::int64_t k = 0; k < from.width(); ++k) {
      row[k] *= from.format.kind == ActivationKind::Fp8Static ? from.format.static_scale
                                                              : from.scales.matrix<float>().row(t)[k / group];
    }
  });
}

void convert_activation(const Activation& from, Activation& out, Workspace& workspace) {
  out.num_tokens = from.num_tokens;
  workspace.reserve_scratch(RowStore::scratch_bytes(out.width()));
  const RowStore store(out);
  for_each_row(workspace, from.num_tokens, [&](std::int64_t t, int thread) {
    std::ranges::copy(from.values.matrix<float>().row_span(t), store.begin(t, workspace.scratch(thread)));
    store.finish(t, workspace.scratch(thread));
  });
}

}  // namespace nibble::backend::cpu
