#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/layout.h"
#include "weights/linear_weights.h"

namespace nibble::backend::cpu {

/// What a part reads: the valid rows of an Activation in the part's own format.
struct PartInput {
  Matrix<const float> floats;  // F32, and what FP8 activations decode to
  IntRows integers;            // Int16PerGroup
};
PartInput part_input(const Activation& activation);

/// One linear of a fused group in the layout of its kernel. Immutable once its linear is built; any thread may run it.
class PackedPart {
 public:
  virtual ~PackedPart() = default;

  virtual std::int64_t out_features() const = 0;
  virtual std::int64_t size_bytes() const = 0;
  virtual std::size_t scratch_bytes() const = 0;
  /// y[t, rows of the tiles] = W x (+ bias); y is [num_tokens, out_features] of this part.
  virtual void run(const PartInput& x, std::int64_t first_tile, std::int64_t num_tiles, Matrix<float> y,
                   std::byte* scratch) const = 0;
  /// Inputs per activation scale, 0 for f32 activations; a fused group may lower it to a divisor.
  std::int64_t activation_group() const { return activation_group_; }
  virtual void set_activation_group(std::int64_t group) { activation_group_ = group; }

  std::int64_t num_tiles() const { return ceil_div(out_features(), kTileRows); }
  /// Act-order: packed column j is input channel permutation()[j]; empty for the natural order.
  std::span<const std::int32_t> permutation() const { return permutation_; }
  /// FP8 weights may ask for inputs rounded to FP8; the kind is F32 where they do not.
  const ActivationFormat& rounding() const { return rounding_; }
  void set_static_scale(float scale) { rounding_.static_scale = scale; }
  ActivationFormat format() const;

 protected:
  std::int64_t activation_group_ = 0;
  std::vector<std::int32_t> permutation_;
  ActivationFormat rounding_;
};

/// How a part is packed.
struct PackOptions {
  Precision precision = Precision::Fast;
  Fp8Activations fp8_activations = Fp8Activations::Auto;
};

/// Packs one canonical linear, using the pool. Precision::Exact keeps activations in f32.
std::unique_ptr<PackedPart> pack_part(const weights::LinearPart& part, const PackOptions& options, ThreadPool& pool);

/// A dense matrix at 8 bits with an f16 scale per row and 64 inputs, for an lm_head: half the bytes of f16.
/// Nothing when in_features is no multiple of the activation group.
std::unique_ptr<PackedPart> pack_dense_at_8_bits(const weights::DenseWeights& weights, const Tensor& bias,
                                                 ThreadPool& pool);

}  // namespace nibble::backend::cpu
