#pragma once

#include <vector>

#include "formats/linear_format.h"

/// FP8 in vLLM's own form, quant_method "fp8" (formats.md §3; AutoFP8, DeepSeek and transformers' FineGrainedFP8 write
/// it too):
///
///   weight            F8_E4M3 [out, in]
///   weight_scale      f32 (f16, bf16 read) [] or [1] per tensor, [out] or [out, 1] per channel
///   weight_scale_inv  f32 (f16, bf16 read) [ceil(out/128), ceil(in/128)] per block; it multiplies like weight_scale
///   input_scale       f32 [] or [1], where activation_scheme is static
namespace nibble::formats {

/// Errors: Unsupported naming other codes than E4M3FN (e5m2, e4m3fnuz) and scales than floats (ue8m0).
QuantizationConfig parse_fp8_config(const Json& raw);
/// activation_scheme, weight_block_size and kv_cache_scheme come from `config.raw`.
Json make_fp8_config(const QuantizationConfig& config);

/// The shape of the scale, not the config, says what shares it. The codes borrow from the checkpoint.
weights::LinearWeights read_fp8(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape);

/// vLLM reads scales per tensor and per block; a scale per channel it expects as compressed-tensors.
std::vector<NamedTensor> write_fp8(const weights::LinearWeights& weights);

}  // namespace nibble::formats
