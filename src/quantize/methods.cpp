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

void check_rtn(const MethodOptions& options) {
  refuse_desc_act(options, "rtn");
}

void check_gptq(const MethodOptions&) {}

void check_awq(const MethodOptions& options) {
  refuse_desc_act(options, "awq");
}

/// Version 1 of the format cannot hold a zero point of 0, which asymmetric grids need.
std::string_view gptq_format(const MethodOptions& options) {
  return options.grid.symmetry == Symmetry::Symmetric ? "gptq" : "gptq_v2";
}

/// AWQ's own files hold 4 bits only; scaled weights of other widths go where GPTQModel puts them too.
std::string_view awq_format(const MethodOptions& options) {
  return options.grid.bits == 4 ? "awq" : gptq_format(options);
}

template <Calibration kCalibration>
Calibration always(const MethodOptions&) {
  return kCalibration;
}

constexpr Method kMethods[] = {
    {"rtn", "round to nearest: no calibration, the baseline", Symmetry::Symmetric, always<Calibration::None>, check_rtn,
     make_rtn, gptq_format},
    {"awq", "scale the channels that matter, then round", Symmetry::Asymmetric, always<Calibration::Block>, check_awq,
     make_awq, awq_format},
    {"gptq", "round column by column, later columns absorb the error", Symmetry::Symmetric, always<Calibration::Stages>,
     check_gptq, make_gptq, gptq_format},
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
