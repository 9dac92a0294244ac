#pragma once

#include <vector>

#include "formats/linear_format.h"

/// AWQ in AutoAWQ's "GEMM" form, 4 bits (formats.md §1; files of AutoAWQ 0.2.9 were checked):
///
///   qweight  i32 [in, out/8]      nibble i of word c holds output 8c + order[i], order = 0 2 4 6 1 3 5 7
///   qzeros   i32 [groups, out/8]  in the same order, zeros as they are
///   scales   f16 [groups, out]
namespace nibble::formats {

QuantizationConfig parse_awq_config(const Json& raw);
Json make_awq_config(const QuantizationConfig& config);

weights::LinearWeights read_awq(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape);

/// Needs 4 bits, no g_idx, out a multiple of 8 and in of group_size: the format has no room for anything else.
std::vector<NamedTensor> write_awq(const weights::GroupedIntWeights& weights);

}  // namespace nibble::formats
