#include "backend/cpu/packed_part.h"

#include <atomic>

#include "backend/cpu/pack_codebook.h"
#include "backend/cpu/pack_dense.h"
#include "backend/cpu/pack_fp8.h"
#include "backend/cpu/pack_grouped_int.h"
#include "core/log.h"

namespace nibble::backend::cpu {
namespace {

/// Kinds without a kernel of their own here run as f32 weights; the log says so once.
std::unique_ptr<PackedPart> pack_as_dense(const weights::LinearWeights& w, const Tensor& bias, ThreadPool& pool) {
  static std::atomic_flag warned;
  if (!warned.test_and_set()) {
    log::warning("{} weights have no kernel on the CPU: they are held and multiplied as f32", weights::describe(w));
  }
  return pack_dense({weights::dequantize(w)}, bias, pool);
}

}  // namespace

PartInput part_input(const Activation& activation) {
  PartInput input;
  if (activation.format.kind == ActivationKind::F32) {
    input.floats = activation.values.matrix<float>().block(0, activation.num_tokens);
    return input;
  }
  input.integers = {.planes = static_cast<const std::int8_t*>(activation.values.view().data()),
                    .scales = activation.scales.span<float>().data(),
                    .sums = activation.sums.span<std::int32_t>().data(),
                    .num_tokens = activation.num_tokens,
                    .width = activation.width(),
                    .group_size = activation.format.group_size};
  return input;
}

ActivationFormat PackedPart::format() const {
  ActivationFormat format = rounding_;
  if (activation_group_ > 0) {
    format.kind = ActivationKind::Int16PerGroup;
    format.group_size = static_cast<std::int32_t>(activation_group_);
  }
  format.input_permutation = permutation_;
  return format;
}

std::unique_ptr<PackedPart> pack_part(const weights::LinearPart& part, const PackOptions& options, ThreadPool& pool) {
  if (const auto* dense = std::get_if<weights::DenseWeights>(&part.weights)) return pack_dense(*dense, part.bias, pool);
  if (const auto* grouped = std::get_if<weights::GroupedIntWeights>(&part.weights)) {
    return pack_grouped_int(*grouped, part.bias, options.precision, pool);
  }
  if (const auto* fp8 = std::get_if<weights::Fp8Weights>(&part.weights)) {
    if (auto packed = pack_fp8(*fp8, part.bias, options.fp8_activations, pool)) return packed;
  }
  if (const auto* codebook = std::get_if<weights::CodebookWeights>(&part.weights)) {
    return pack_codebook(*codebook, part.bias, pool);
  }
  return pack_as_dense(part.weights, part.bias, pool);
}

}  // namespace nibble::backend::cpu
