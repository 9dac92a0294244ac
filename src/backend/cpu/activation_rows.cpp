#include "backend/cpu/activation_rows.h"

#include <algorithm>

#include "backend/cpu/kernels.h"

namespace nibble::backend::cpu {
namespace {

constexpr std::int64_t kRowsPerTask = 4;

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
