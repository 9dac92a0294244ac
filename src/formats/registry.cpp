#include <fmt/format.h>

#include <array>

#include "formats/awq.h"
#include "formats/compressed_tensors.h"
#include "formats/fp8.h"
#include "formats/gptq.h"
#include "formats/linear_format.h"
#include "formats/squeezellm.h"

namespace nibble::formats {
namespace {

using weights::CodebookWeights;
using weights::GroupedIntWeights;
using weights::LinearWeights;

constexpr TensorSet kGroupedIntSets[] = {{"qweight", {"qzeros", "scales"}}};
constexpr TensorSet kCodebookSets[] = {{"qweight", {"lookup_table"}}};
constexpr TensorSet kFp8Sets[] = {{"weight_scale", {"weight"}}, {"weight_scale_inv", {"weight"}}};
constexpr TensorSet kCompressedSets[] = {{"weight_packed", {"weight_scale"}}, {"weight_scale", {"weight"}}};

constexpr std::array kFormats{
    LinearFormat{"gptq", "gptq", kGroupedIntSets, parse_gptq_config, make_gptq_config, read_gptq,
                 [](const LinearWeights& w) { return write_gptq_v1(expect_kind<GroupedIntWeights>(w, "gptq")); }},
    LinearFormat{"gptq_v2", "gptq", kGroupedIntSets, parse_gptq_config, make_gptq_config, read_gptq,
                 [](const LinearWeights& w) { return write_gptq_v2(expect_kind<GroupedIntWeights>(w, "gptq_v2")); }},
    LinearFormat{"awq", "awq", kGroupedIntSets, parse_awq_config, make_awq_config, read_awq,
                 [](const LinearWeights& w) { return write_awq(expect_kind<GroupedIntWeights>(w, "awq")); }},
    LinearFormat{"fp8", "fp8", kFp8Sets, parse_fp8_config, make_fp8_config, read_fp8, write_fp8},
    LinearFormat{"compressed-tensors", "compressed-tensors", kCompressedSets, parse_compressed_tensors_config,
                 make_compressed_tensors_config, read_compressed_tensors, write_compressed_tensors},
    LinearFormat{"squeezellm", "squeezellm", kCodebookSets, parse_squeezellm_config, make_squeezellm_config,
                 read_squeezellm,
                 [](const LinearWeights& w) { return write_squeezellm(expect_kind<CodebookWeights>(w, "squeezellm")); },
                 make_squeezellm_side_files},
};

}  // namespace

std::span<const LinearFormat> linear_formats() {
  return kFormats;
}

const LinearFormat& find_linear_format(std::string_view name) {
  if (name == "autoawq") name = "awq";  // as llm-awq's and vLLM's guides call it
  std::string known;
  for (const LinearFormat& format : kFormats) {
    if (format.name == name) return format;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", format.name);
  }
  throw Error(ErrorCode::InvalidArgument, fmt::format("unknown format '{}'; known: {}", name, known));
}

const LinearFormat* find_linear_format_of_method(std::string_view method) {
  for (const LinearFormat& format : kFormats) {
    if (format.method == method) return &format;
  }
  return nullptr;
}

}  // namespace nibble::formats
