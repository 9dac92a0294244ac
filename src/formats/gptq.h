#pragma once

#include <vector>

#include "formats/linear_format.h"

/// GPTQ, v1 and v2, 2/3/4/8 bits (formats.md §2; files of AutoGPTQ 0.7.1 and GPTQModel 7.7.0 were checked):
///
///   qweight  i32 [in*bits/32, out]   per output a little-endian bit stream along the inputs
///   qzeros   i32 [groups, out*bits/32]  bit stream along the outputs; v1 stores zero - 1, v2 the zero
///   scales   f16 [groups, out]
///   g_idx    i32 [in]                group of each input; may be absent
namespace nibble::formats {

QuantizationConfig parse_gptq_config(const Json& raw);
Json make_gptq_config(const QuantizationConfig& config);

/// A trivial g_idx (i / group_size) is dropped; negative entries count from the end; zeros that contradict `sym` are
/// reported and used.
weights::LinearWeights read_gptq(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape);

/// v1 holds zero points 1…2^bits-1, v2 0…2^bits-1; in and out must be multiples of 32, as AutoGPTQ and GPTQModel need.
std::vector<NamedTensor> write_gptq_v1(const weights::GroupedIntWeights& weights);
std::vector<NamedTensor> write_gptq_v2(const weights::GroupedIntWeights& weights);

}  // namespace nibble::formats
