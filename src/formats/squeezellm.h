#pragma once

#include <string>
#include <utility>
#include <vector>

#include "formats/linear_format.h"

/// SqueezeLLM, 3 and 4 bits, dense or with sparse outliers (formats.md §6; the reference code of Kim et al. and vLLM's
/// loader until September 2024):
///
///   qweight           i32 [in*bits/32, out]   per output a little-endian bit stream of codes along the inputs, as GPTQ
///   lookup_table      f32 or f16 [out, 2^bits]   in any order
///   rows, cols, vals  i32 [out+1], i32 [nnz], f32 [nnz]   CSR over outputs, added to the dense part
///   full_rows, full_row_indices  f32 [in, n], i32 [n]     hybrid files: column t is added to output
///   full_row_indices[t] startrows         of the reference's kernel, ignored
namespace nibble::formats {

/// `wbits` or `bits`. Errors: Unsupported for other widths than 3 and 4.
QuantizationConfig parse_squeezellm_config(const Json& raw);
/// `sparsity` (a fraction) comes from `config.raw`; include_sparse follows from it.
Json make_squeezellm_config(const QuantizationConfig& config);
/// quant_config.json with `wbits`, where vLLM looked for it.
std::vector<std::pair<std::string, std::string>> make_squeezellm_side_files(const QuantizationConfig& config);

/// The width of lookup_table, not the config, says how many bits a module has. Full rows join the CSR.
weights::LinearWeights read_squeezellm(const ModuleTensors& tensors, const QuantizationConfig& config,
                                       const Shape& shape);
/// Inputs must fill whole words: multiples of 8 at 4 bits, of 32 at 3.
std::vector<NamedTensor> write_squeezellm(const weights::CodebookWeights& weights);

}  // namespace nibble::formats
