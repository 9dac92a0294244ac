#pragma once

#include <vector>

#include "formats/linear_format.h"

/// compressed-tensors, the format of llm-compressor (formats.md §4; compressed-tensors 0.20.0 was checked):
///
///   pack-quantized   weight_packed      i32 [out, ceil(in*bits/32)]     bit stream along the inputs, q + 2^(bits-1)
///                    weight_scale       float [out, groups]             [out, 1] per channel
///                    weight_zero_point  i32 [ceil(out*bits/32), groups] bit stream along the outputs; asymmetric only
///                    weight_shape       i64 [2]                         out, in
///                    weight_g_idx       i32 [in]                        read, never written: releases of 2026 refuse
///                    it
///   int-quantized    weight i8 [out, in], weight_scale, weight_zero_point i8
///   float-quantized  weight F8_E4M3 [out, in]; weight_scale [1], [out, 1] or [ceil(out/128), ceil(in/128)];
///                    input_scale [1] where activations are static
///
/// Releases before 0.20 put floor(32/bits) values into a word of 3 bits and left two bits empty; the width tells.
namespace nibble::formats {

QuantizationConfig parse_compressed_tensors_config(const Json& raw);
Json make_compressed_tensors_config(const QuantizationConfig& config);

weights::LinearWeights read_compressed_tensors(const ModuleTensors& tensors, const QuantizationConfig& config,
                                               const Shape& shape);

/// GroupedIntWeights as pack-quantized, Fp8Weights as float-quantized. A linear whose zero points are all in the middle
/// is written without them, as symmetric. Errors: Unsupported for g_idx, partial groups and other structs.
std::vector<NamedTensor> write_compressed_tensors(const weights::LinearWeights& weights);

}  // namespace nibble::formats
