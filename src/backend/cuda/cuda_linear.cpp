#include "backend/cuda/cuda_linear.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <span>
#include <utility>
#include <variant>

#include "backend/cuda/device.h"
#include "backend/cuda/device_part.h"
#include "backend/cuda/rows.h"
#include "backend/host_ops.h"
#include "core/error.h"
#include "core/log.h"

namespace nibble::backend::cuda {
namespace {

/// A part on the device and, where its inputs may be rounded to FP8, how.
struct Part {
  std::unique_ptr<DevicePart> weights;
  std::optional<Fp8Operand> fp8;
  ActivationFormat rounding;
  std::int64_t min_rounded_tokens = 0;

  bool rounds(std::int64_t num_tokens) const { return fp8 && num_tokens >= min_rounded_tokens; }
};

/// The first of `parts` and those behind it that become one with it: fewer and larger products.
template <class Weights>
std::vector<const Weights*> joinable(std::span<const weights::LinearPart> parts) {
  std::vector<const Weights*> joined{&std::get<Weights>(parts.front().weights)};
  for (const weights::LinearPart& part : parts.subspan(1)) {
    const auto* next = std::get_if<Weights>(&part.weights);
    if (next == nullptr || !can_join(*joined.front(), *next)) break;
    joined.push_back(next);
  }
  return joined;
}

/// What GPUs round the inputs of these to.
ActivationFormat rounding_of(std::span<const weights::Fp8Weights* const> parts) {
  ActivationFormat format = fp8_input_format(*parts.front());
  for (const auto* part : parts) format.static_scale = std::max(format.static_scale, part->input_scale);
  return format;
}

void log_fp8_dequantized() {
  static std::atomic_flag logged;
  if (logged.test_and_set()) return;
  log::info(
      "this GPU has no FP8 products with scales per output and token (Hopper has): FP8 weights are dequantized to "
      "f16 where a step has many tokens");
}

/// Lets the inputs of `part` be rounded where the options want it. Errors: Unsupported where they must be and the GPU
/// cannot.
void allow_rounding(Part& part, const ActivationFormat& rounding, const LinearContext& context) {
  const bool is_auto = context.fp8_activations == Fp8Activations::Auto;
  if (context.fp8_activations == Fp8Activations::Float) return;
  if (is_auto && context.format == ActivationKind::F32) return;  // Precision::Exact
  if (!context.fp8.is_supported()) {
    if (is_auto) return log_fp8_dequantized();
    throw Error(ErrorCode::Unsupported,
                "--activations fp8: this GPU has no FP8 products with scales per output and token (Hopper has): leave "
                "the flag out, or use --device cpu");
  }
  part.fp8 = part.weights->fp8_operand();
  part.rounding = rounding;
  part.min_rounded_tokens = is_auto ? part.weights->max_streamed_tokens() + 1 : 1;
}

/// The first of `parts` on the device, with those behind it that join it; drops them from `parts`.
Part take_part(std::span<const weights::LinearPart>& parts, const LinearContext& context) {
  Part part{};
  std::size_t count = 0;
  const auto take = [&](const auto& joined, auto make) {
    part.weights = make(joined, context.format, context.stream);
    count = joined.size();
  };
  const weights::LinearWeights& first = parts.front().weights;
  if (std::holds_alternative<weights::GroupedIntWeights>(first)) {
    take(joinable<weights::GroupedIntWeights>(parts), make_int_part);
  } else if (std::holds_alternative<weights::CodebookWeights>(first)) {
    take(joinable<weights::CodebookWeights>(parts), make_codebook_part);
  } else if (std::holds_alternative<weights::Fp8Weights>(first)) {
    const auto joined = joinable<weights::Fp8Weights>(parts);
    take(joined, make_fp8_part);
    allow_rounding(part, rounding_of(joined), context);
  } else {
    take(joinable<weights::DenseWeights>(parts), make_dense_part);
  }
  parts = parts.subspan(count);
  return part;
}

/// The parts' biases in order, zero where a part has none; empty where none has one.
Tensor join_biases(const std::vector<weights::LinearPart>& parts, std::int64_t out_features, cudaStream_t stream) {
  if (std::ranges::all_of(parts, [](const auto& part) { return part.bias.is_empty(); })) return {};
  Tensor joined = Tensor::zeros(DType::F32, {out_features});
  auto next = joined.span<float>().begin();
  for (const weights::LinearPart& part : parts) {
    if (!part.bias.is_empty()) std::ranges::copy(part.bias.span<float>(), next);
    next += weights::out_features(part.weights);
  }
  return to_device(joined, stream);
}

class CudaLinear final : public Linear {
 public:
  CudaLinear(const std::vector<weights::LinearPart>& parts, const LinearContext& context) : context_(context) {
    in_features_ = weights::in_features(parts.front().weights);
    input_format_ = {.kind = context.format};
    for (const weights::LinearPart& part : parts) {
      nibble::check(weights::in_features(part.weights) == in_features_, "parts of a fused linear share their input");
    }
    for (std::span<const weights::LinearPart> rest = parts; !rest.empty();) {
      parts_.push_back(take_part(rest, context));
      const DevicePart& weights = *parts_.back().weights;
      out_features_ += weights.out_features();
      size_bytes_ += weights.size_bytes();
      context.scratch.reserve(weights.scratch_bytes(context.format));
    }
    bias_ = join_biases(parts, out_features_, context.stream);
    size_bytes_ += static_cast<std::int64_t>(bias_.size_bytes());
  }

  void forward(const Activation& x, Activation& y) const override {
    nibble::check(x.format.kind == input_format_.kind && x.width() == in_features_ && y.width() == out_features_ &&
                      y.capacity() >= x.num_tokens,
                  "cuda linear: x [num_tokens, in] in the linear's format, y [num_tokens, out]");
    y.num_tokens = x.num_tokens;
    if (x.num_tokens == 0) return;
    reserve(y.capacity());
    std::int64_t first_col = 0;
    for (const Part& part : parts_) {
      multiply(part, x, y, first_col);
      first_col += part.weights->out_features();
    }
    if (!bias_.is_empty()) add_bias(bias_, y, context_.stream);
  }

 private:
  /// For the largest step at the first one, so that no later step allocates.
  void reserve(std::int64_t max_tokens) const {
    if (max_tokens <= reserved_tokens_) return;
    for (const Part& part : parts_) {
      if (part.rounds(max_tokens)) context_.fp8.reserve(*part.fp8, max_tokens);
    }
    reserved_tokens_ = max_tokens;
  }

  void multiply(const Part& part, const Activation& x, Activation& y, std::int64_t first_col) const {
    const std::size_t y_bytes = nibble::size_bytes(y.values.dtype());
    const OutputColumns columns{
        .data = static_cast<std::byte*>(y.values.mutable_view().data()) + static_cast<std::size_t>(first_col) * y_bytes,
        .stride = out_features_,
        .kind = y.format.kind};
    if (part.rounds(x.num_tokens)) {
      return context_.fp8.multiply(*part.fp8, x, part.rounding, columns, y.capacity(), context_.stream);
    }
    if (x.num_tokens <= part.weights->max_streamed_tokens()) {
      return part.weights->multiply(x, columns, context_.scratch.data(), context_.stream);
    }
    const std::int64_t num_rows = part.weights->out_features();
    const std::int64_t step = part.weights->dense_rows(x.format.kind);
    for (std::int64_t first = 0; first < num_rows; first += step) {
      const RowRange rows{first, std::min(step, num_rows - first)};
      const void* weights = part.weights->dense(x.format.kind, rows, context_.scratch.data(), context_.stream);
      context_.cublas.multiply({.m = x.num_tokens,
                                .n = rows.count,
                                .k = in_features_,
                                .y_stride = out_features_,
                                .input = values_dtype(x.format.kind),
                                .output = y.values.dtype()},
                               x.values.view().data(), weights,
                               static_cast<std::byte*>(columns.data) + static_cast<std::size_t>(first) * y_bytes,
                               context_.stream);
    }
  }

  LinearContext context_;
  std::vector<Part> parts_;
  Tensor bias_;                               // f32 [out] on the device, or empty
  mutable std::int64_t reserved_tokens_ = 0;  // one step at a time runs
};

}  // namespace

std::unique_ptr<Linear> make_cuda_linear(const std::vector<weights::LinearPart>& parts, const LinearSpec& spec,
                                         const LinearContext& context) {
  try {
    return std::make_unique<CudaLinear>(parts, context);
  } catch (const Error& error) {
    throw error.in(spec.name);
  }
}

}  // namespace nibble::backend::cuda
