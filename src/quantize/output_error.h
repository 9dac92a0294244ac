#pragma once

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "quantize/tile.h"

/// What a change of weights does to a layer's outputs, from the Gram matrix G = Σ x x^T of its inputs.
namespace nibble::quantize {

/// Σ over the tile's rows of v G v^T, v = a row of the tile.
double quadratic_form(const Tile& tile, Matrix<const float> gram);

/// Relative error of the outputs: tr(Δ G Δ^T) / tr(W G W^T) with Δ = quantized - weight; 0 where the outputs are 0.
/// weight, quantized f32 [out, in], gram f32 [in, in].
double output_error(Matrix<const float> weight, Matrix<const float> quantized, Matrix<const float> gram,
                    ThreadPool& pool);

}  // namespace nibble::quantize
