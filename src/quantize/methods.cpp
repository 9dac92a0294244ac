#include <fmt/format.h>

#include <string>

#include "quantize/quantizer.h"

namespace nibble::quantize {
namespace {

void refuse_desc_act(const MethodOptions& options, std::string_view method) {
  if (options.group_index == GroupIndex::Trivial) return;
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("--desc-act reorders columns for GPTQ; {} has no such order: leave it out", method));
}

void refuse_guided(const MethodOptions& options, std::string_view method) {
  if (options.guidance == Guidance::Inputs) return;
  throw Error(
      ErrorCode::InvalidArgument,
      fmt::format("--guided goes with gptq and squeezellm, not with {}; what --method gptq --guided --asym makes "
                  "can be written as AWQ: --format autoawq",
                  method));
}

void refuse_drift_correction(const MethodOptions& options, std::string_view method) {
  if (options.drift_correction == 0) return;
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("--drift-correction goes with gptq and awq, not with {}: leave it out", method));
}

void check_drift_correction(const MethodOptions& options) {
  if (options.drift_correction >= 0 && options.drift_correction <= 1) return;
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("--drift-correction {}: choose 0 (none) … 1 (all)", options.drift_correction));
}

void check_rtn(const MethodOptions& options) {
  refuse_desc_act(options, "rtn");
  refuse_guided(options, "rtn");
  refuse_drift_correction(options, "rtn");
}

void check_gptq(const MethodOptions& options) {
  check_drift_correction(options);
  if (options.guidance == Guidance::Inputs) return;
  refuse_drift_correction(options, "--guided, whose statistics are those of the float model");
  if (options.group_index == GroupIndex::Trivial) return;
  throw Error(ErrorCode::InvalidArgument, "--guided keeps groups as they lie; leave --desc-act out");
}

Calibration gptq_calibration(const MethodOptions& options) {
  return options.guidance == Guidance::EndLoss ? Calibration::Loss : Calibration::Stages;
}

void check_awq(const MethodOptions& options) {
  refuse_desc_act(options, "awq");
  refuse_guided(options, "awq");
  check_drift_correction(options);
}

/// Version 1 of the format cannot hold a zero point of 0, which asymmetric grids need.
std::string_view gptq_format(const MethodOptions& options) {
  return options.grid.symmetry == Symmetry::Symmetric ? "gptq" : "gptq_v2";
}

/// AWQ's own files hold 4 bits only; scaled weights of other widths go where GPTQModel puts them too.
std::string_view awq_format(const MethodOptions& options) {
  return options.grid.bits == 4 ? "awq" : gptq_format(options);
}

void check_fp8(const MethodOptions& options) {
  refuse_guided(options, "fp8");
  refuse_drift_correction(options, "fp8");
  const Fp8Options& fp8 = options.fp8;
  if (fp8.granularity == weights::Fp8Granularity::PerBlock && fp8.activations == ActivationScheme::Static) {
    throw Error(ErrorCode::InvalidArgument,
                "--activation-scheme static does not go with blocks, whose activations are scaled per token and 128 "
                "inputs; choose --weight-strategy channel or tensor");
  }
  if (!(fp8.percentile > 0 && fp8.percentile <= 100)) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--range-percentile {}: choose 0 … 100, as in 99.99", fp8.percentile));
  }
}

Calibration fp8_calibration(const MethodOptions& options) {
  const bool is_calibrated =
      options.fp8.activations == ActivationScheme::Static || options.fp8.kv_cache_scales == KvCacheScales::Calibrated;
  return is_calibrated ? Calibration::Ranges : Calibration::None;
}

/// vLLM reads scales per channel as compressed-tensors only.
std::string_view fp8_format(const MethodOptions& options) {
  return options.fp8.granularity == weights::Fp8Granularity::PerChannel ? "compressed-tensors" : "fp8";
}

void check_squeezellm(const MethodOptions& options) {
  refuse_drift_correction(options, "squeezellm");
  if (options.grid.bits != 3 && options.grid.bits != 4) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--bits {}: SqueezeLLM has 3 and 4", options.grid.bits));
  }
  if (options.guidance == Guidance::EndLoss && options.squeezellm.sensitivity == Sensitivity::Hessian) {
    throw Error(ErrorCode::InvalidArgument,
                "--guided looks at the end loss, --sensitivity hessian does not; leave one out");
  }
  // Beyond this a value and its column take more room than the codes they stand in for.
  constexpr double kMostSparsity = 0.05;
  if (!(options.squeezellm.sparsity >= 0 && options.squeezellm.sparsity <= kMostSparsity)) {
    throw Error(ErrorCode::InvalidArgument, fmt::format("--sparsity {}%: choose 0 … {}%, as in 0.45%",
                                                        100 * options.squeezellm.sparsity, 100 * kMostSparsity));
  }
}

Calibration squeezellm_calibration(const MethodOptions& options) {
  return options.squeezellm.sensitivity == Sensitivity::Fisher ? Calibration::Loss : Calibration::Stages;
}

std::string_view squeezellm_format(const MethodOptions&) {
  return "squeezellm";
}

template <Calibration kCalibration>
Calibration always(const MethodOptions&) {
  return kCalibration;
}

constexpr Method kMethods[] = {
    {"rtn", "round to nearest: no calibration, the baseline", Makes::GroupedInt, Symmetry::Symmetric,
     always<Calibration::None>, check_rtn, make_rtn, gptq_format},
    {"awq", "scale the channels that matter, then round", Makes::GroupedInt, Symmetry::Asymmetric,
     always<Calibration::Block>, check_awq, make_awq, awq_format},
    {"gptq", "round column by column, later columns absorb the error", Makes::GroupedInt, Symmetry::Symmetric,
     gptq_calibration, check_gptq, make_gptq, gptq_format, 2},
    {"fp8", "8-bit floats, nearly lossless and half the size", Makes::Fp8, Symmetry::Symmetric, fp8_calibration,
     check_fp8, make_fp8, fp8_format},
    {"squeezellm", "a table of values for each output row, by what the end loss feels", Makes::Codebook,
     Symmetry::Asymmetric, squeezellm_calibration, check_squeezellm, make_squeezellm, squeezellm_format},
};

}  // namespace

std::span<const Method> methods() {
  return kMethods;
}

const Method& find_method(std::string_view name) {
  std::string known;
  for (const Method& method : kMethods) {
    if (method.name == name) return method;
    known += (known.empty() ? "" : ", ") + std::string(method.name);
  }
  throw Error(ErrorCode::InvalidArgument, fmt::format("unknown method {}; nibble knows {}", name, known));
}

}  // namespace nibble::quantize
