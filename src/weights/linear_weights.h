#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>

#include "core/tensor.h"

/// The canonical linears: between many disk formats and many kernels stand these plain structs. A format reads
/// into one and writes from one; a quantizer makes one; a backend packs one into its own layout. Memory is the
/// host's, but for what Backend::quantize_to_fp8 leaves on its device. A linear computes y[out] = W[out, in] x[in]; the
/// bias travels beside it, in the float dtype.
namespace nibble::weights {

/// weight  [out_features, in_features]   f32, f16 or bf16; may borrow from a mapped checkpoint
struct DenseWeights {
  Tensor weight;
};

/// Integer weights that share a scale and a zero along groups of inputs; RTN, AWQ and GPTQ all end here.
///
///   w[o, i] = scales[o, g] * (codes[o, i] - zeros[o, g])
///   with g = g_idx ? g_idx[i] : (first_group_offset + i) / group_size
///
/// codes   u8 [out_features, row_bytes]      little-endian bit stream along in_features: code i of a row has bits
///                                           [i*bits, (i+1)*bits); row_bytes = 4 * ceil(in_features*bits/32)
/// scales  [out_features, num_groups]        f16, bf16 or f32; may be negative
/// zeros   i16 [out_features, num_groups]    in code units, 0…2^bits: true values, readers undo GPTQ v1's minus one
/// g_idx   i32 [in_features] or empty        group of each input (desc_act)
struct GroupedIntWeights {
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::int32_t bits = 4;                // 2, 3, 4 or 8
  std::int64_t group_size = 0;          // inputs per group, never -1: readers put in_features there
  std::int64_t first_group_offset = 0;  // a rank's slice may begin inside a group: 0 … group_size-1
  Tensor codes;
  Tensor scales;
  Tensor zeros;
  Tensor g_idx;

  std::int64_t num_groups() const { return scales.shape()[1]; }
  bool has_g_idx() const { return !g_idx.is_empty(); }
};

/// weight       E4M3 [out_features, in_features]
/// scale        f32: [1] per tensor, [out_features] per channel, or
///              [ceil(out/block), ceil(in/block)] per block:  w = float(weight) * scale
/// input_scale  static activation scale: x8 = cast(x / input_scale); 0 when activations are dynamic
struct Fp8Weights {
  Tensor weight;
  Tensor scale;
  std::int64_t block_size = 0;  // 128 for the block form, else 0
  float input_scale = 0;
};

/// w[o, i] = lookup_table[o, code(o, i)] + sparse[o, i]
///
/// codes         u8 [out_features, row_bytes]  as in GroupedIntWeights, 3 or 4 bits
/// lookup_table  f32 or f16 [out_features, 2^bits], in any order
/// rows, cols, vals  CSR outliers over output rows: i32 [out+1], i32 [nnz], f32 [nnz]; all empty when dense
struct CodebookWeights {
  std::int64_t out_features = 0;
  std::int64_t in_features = 0;
  std::int32_t bits = 4;
  Tensor codes;
  Tensor lookup_table;
  Tensor rows;
  Tensor cols;
  Tensor vals;
};

using LinearWeights = std::variant<DenseWeights, GroupedIntWeights, Fp8Weights, CodebookWeights>;

/// One linear of a fused group: its weights and, where the layer has one, its bias [out_features] in f32.
struct LinearPart {
  LinearWeights weights;
  Tensor bias;
};

std::int64_t out_features(const LinearWeights& weights);
std::int64_t in_features(const LinearWeights& weights);
/// Bytes of all tensors of the struct.
std::int64_t size_bytes(const LinearWeights& weights);
/// "dense f16", "int4 g128 asym", "fp8 per channel", "codebook 4 bit"
std::string describe(const LinearWeights& weights);

/// Checks shapes, ranges of codes' row length, zeros, g_idx, CSR, and that scales are finite.
/// Errors: Corrupt, naming what is wrong (the caller adds the tensor's name).
void validate(const LinearWeights& weights);

/// The reference dequantization: f32 [out_features, in_features]. Exact for f16 scales: one multiplication in
/// f32 per element.
Tensor dequantize(const LinearWeights& weights);
/// Rows [first_row, first_row + to.rows) of it.
void dequantize_rows(const LinearWeights& weights, std::int64_t first_row, Matrix<float> to);

/// Slices for tensor parallelism (formats.md §7); slices of all ranks rejoin to the whole.
/// Output rows [first, first + count).
LinearWeights slice_outputs(const LinearWeights& weights, std::int64_t first, std::int64_t count);
/// Input columns [first, first + count): groups may be cut (first_group_offset), g_idx keeps global numbers.
LinearWeights slice_inputs(const LinearWeights& weights, std::int64_t first, std::int64_t count);

/// Bytes of one packed row of codes: 4 * ceil(in_features * bits / 32).
std::int64_t packed_row_bytes(std::int64_t in_features, std::int32_t bits);
/// Unsigned codes into the packed stream. `codes` are < 2^bits; `packed` has packed_row_bytes().
void pack_codes(std::span<const std::uint8_t> codes, std::int32_t bits, std::span<std::uint8_t> packed);
/// Inverse of pack_codes; `codes.size()` codes are read.
void unpack_codes(std::span<const std::uint8_t> packed, std::int32_t bits, std::span<std::uint8_t> codes);

}  // namespace nibble::weights
