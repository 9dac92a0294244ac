#pragma once

#include "backend/backend.h"
#include "backend/cpu/workspace.h"

namespace nibble::backend::cpu {

/// Rows of activations are made as f32 in the natural order and stored in the format that their consumer states.
/// F32 without a permutation is made in place; everything else goes through a thread's scratch.
class RowStore {
 public:
  explicit RowStore(Activation& out) : out_(out) {}

  static std::size_t scratch_bytes(std::int64_t width) { return static_cast<std::size_t>(2 * width) * sizeof(float); }

  /// Where to make row t: [width] f32.
  float* begin(std::int64_t t, std::byte* scratch) const;
  /// Row t has been made at begin(t, scratch): permute and quantize it.
  void finish(std::int64_t t, std::byte* scratch) const;

 private:
  bool in_place() const { return out_.format.kind == ActivationKind::F32 && out_.format.input_permutation.empty(); }
  Activation& out_;
};

/// Calls body(t, thread) for every row, several rows a task; few rows stay on the calling thread, because waking the
/// others costs more than a row.
void for_each_row(Workspace& workspace, std::int64_t num_rows, FunctionRef<void(std::int64_t t, int thread)> body);

constexpr bool is_fp8(ActivationKind kind) {
  return kind == ActivationKind::Fp8PerToken || kind == ActivationKind::Fp8Static || kind == ActivationKind::Fp8Per128;
}

/// `out` (f32, capacity reserved) from rows in one of the FP8 formats.
void decode_fp8_activation(const Activation& from, Activation& out, Workspace& workspace);

/// `out` (capacity reserved) in its own format from f32 rows in the natural order.
void convert_activation(const Activation& from, Activation& out, Workspace& workspace);

}  // namespace nibble::backend::cpu
