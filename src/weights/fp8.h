#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "weights/linear_weights.h"

/// Round to nearest E4M3, which needs no calibration: shared by `nibble quantize --method fp8` and by loading with
/// `--quantization fp8`.
namespace nibble::weights {

/// What shares a scale.
enum class Fp8Granularity : std::uint8_t {
  PerTensor,   // a whole linear, and all parts of a fused one: who fuses q, k, v otherwise rounds twice (formats.md §3)
  PerChannel,  // an output row
  PerBlock,    // 128 x 128 weights
};

/// Both sides of a block; the last blocks of a matrix may be narrower.
inline constexpr std::int64_t kFp8BlockSize = 128;
/// The largest E4M3 number.
inline constexpr float kFp8Largest = 448;

/// The scale that puts `largest`, a finite magnitude, on the largest code: largest / 448, or 1 for 0.
float fp8_scale(float largest);

/// scale = absmax / 448, or 1 where all weights are zero; code = cast(clamp(weight / scale, ±448)), with the division
/// in f32: torch's `(w / scale).clamp(-448, 448).to(float8_e4m3fn)`, bit for bit.
/// `parts` [out_features, in_features] in f32, f16 or bf16 are linears that share an input. No f32 copy is made.
/// Errors: Corrupt where a weight is NaN or infinite.
std::vector<Fp8Weights> quantize_fp8(std::span<const TensorView> parts, Fp8Granularity granularity, ThreadPool& pool);

/// The float weights among the parts of one fused linear become Fp8Weights. Errors: as quantize_fp8.
void quantize_parts_to_fp8(std::span<LinearPart> parts, Fp8Granularity granularity, ThreadPool& pool);

}  // namespace nibble::weights
