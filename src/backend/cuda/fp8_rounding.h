#pragma once

#include <span>
#include <vector>

#include "backend/cuda/uploader.h"
#include "weights/fp8.h"

namespace nibble::backend::cuda {

/// weights::quantize_fp8 on the device, bit for bit: `parts` [out_features, in_features] in f32, f16 or bf16 on the
/// host are copied there one after the other (all of them where they share a scale), rounded and freed. The codes stay
/// on the device, the scales are on the host. Waits for the device.
/// Errors: Corrupt where a weight is NaN or infinite; OutOfMemory.
std::vector<weights::Fp8Weights> quantize_fp8(std::span<const TensorView> parts, weights::Fp8Granularity granularity,
                                              Uploader& uploader);
/// The float weights among the parts of one fused linear become Fp8Weights. Errors: as quantize_fp8.
void quantize_parts_to_fp8(std::span<weights::LinearPart> parts, weights::Fp8Granularity granularity,
                           Uploader& uploader);

}  // namespace nibble::backend::cuda
