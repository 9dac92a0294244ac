#include "quantize/report.h"

#include <fmt/format.h>

#include <limits>

#include "core/crash_point.h"
#include "core/file.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kReportVersion = 1;

double num_weights(const LayerReport& layer) {
  return static_cast<double>(layer.out_features) * static_cast<double>(layer.in_features);
}

/// Null stands for NaN.
double get_number(const Json& json, const char* key) {
  if (!json.contains(key)) throw Error(ErrorCode::InvalidArgument, std::string(key) + ": is missing");
  return get_or<double>(json, key, std::numeric_limits<double>::quiet_NaN());
}

Json to_json(const Judgment& judgment) {
  return {{"kl", judgment.kl},
          {"kl_standard_error", judgment.kl_standard_error},
          {"top1", judgment.top1},
          {"ppl", judgment.ppl},
          {"float_ppl", judgment.float_ppl},
          {"text", judgment.text},
          {"windows", judgment.num_windows},
          {"window_len", judgment.window_len},
          {"max_kl", judgment.max_kl ? Json(*judgment.max_kl) : Json()},
          {"rejected", judgment.is_rejected}};
}

Judgment judgment_from_json(const Json& json) {
  Judgment judgment;
  judgment.kl = get_number(json, "kl");
  judgment.kl_standard_error = get_number(json, "kl_standard_error");
  judgment.top1 = get_number(json, "top1");
  judgment.ppl = get_number(json, "ppl");
  judgment.float_ppl = get_number(json, "float_ppl");
  judgment.text = get<std::string>(json, "text");
  judgment.num_windows = get<std::int64_t>(json, "windows");
  judgment.window_len = get<std::int64_t>(json, "window_len");
  judgment.max_kl = get_optional<double>(json, "max_kl");
  judgment.is_rejected = get<bool>(json, "rejected");
  return judgment;
}

}  // namespace

std::string Judgment::summary() const {
  return fmt::format("KL {:.4f} ± {:.4f} nats, top-1 agreement {:.1f} %, perplexity {:.3f} (float: {:.3f})", kl,
                     kl_standard_error, 100 * top1, ppl, float_ppl);
}

double Report::seconds() const {
  double sum = 0;
  for (const LayerReport& layer : layers) sum += layer.seconds;
  return sum;
}

double Report::bits_per_weight() const {
  double bits = 0;
  double weights = 0;
  for (const LayerReport& layer : layers) {
    bits += layer.bits_per_weight * num_weights(layer);
    weights += num_weights(layer);
  }
  return weights > 0 ? bits / weights : 0;
}

Json to_json(const Report& report) {
  Json layers = Json::array();
  for (const LayerReport& layer : report.layers) layers.push_back(to_json(layer));
  return {{"report_version", kReportVersion},
          {"model", report.model},
          {"arguments", report.arguments},
          {"identity", report.identity},
          {"checkpoint_format", report.checkpoint_format},
          {"input_bytes", report.input_bytes},
          {"output_bytes", report.output_bytes},
          {"bits_per_weight", report.bits_per_weight()},
          {"seconds", report.seconds()},
          {"judged", report.judged ? to_json(*report.judged) : Json()},
          {"layers", std::move(layers)}};
}

Report report_from_json(const Json& json) {
  if (const auto version = get<std::int64_t>(json, "report_version"); version != kReportVersion) {
    throw Error(ErrorCode::Unsupported, "report_version " + std::to_string(version) + ": nibble reads version " +
                                            std::to_string(kReportVersion));
  }
  Report report;
  report.model = get<std::string>(json, "model");
  report.arguments = get<std::vector<std::string>>(json, "arguments");
  report.checkpoint_format = get<std::string>(json, "checkpoint_format");
  report.input_bytes = get<std::int64_t>(json, "input_bytes");
  report.output_bytes = get<std::int64_t>(json, "output_bytes");
  for (const char* key : {"identity", "judged", "layers"}) {
    if (!json.contains(key)) throw Error(ErrorCode::InvalidArgument, std::string(key) + ": is missing");
  }
  report.identity = json["identity"];
  if (!json["judged"].is_null()) {
    try {
      report.judged = judgment_from_json(json["judged"]);
    } catch (const Error& error) {
      throw error.in("judged");
    }
  }
  if (!json["layers"].is_array()) throw Error(ErrorCode::InvalidArgument, "layers: is not a list");
  for (const Json& layer : json["layers"]) report.layers.push_back(layer_report_from_json(layer));
  return report;
}

Report read_report(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / kReportFile;
  if (!std::filesystem::exists(path)) {
    throw Error(ErrorCode::NotFound,
                fmt::format("{}: holds no {}; only what nibble quantize wrote has one", folder.string(), kReportFile));
  }
  try {
    return report_from_json(read_json_file(path));
  } catch (const Error& error) {
    throw error.in(path.string());
  }
}

void record_judgment(const std::filesystem::path& folder, const Judgment& judgment) {
  Report report = read_report(folder);
  report.judged = judgment;
  write_text_file(folder / kReportPage, render_html(report));
  crash_point();
  write_json_file(folder / kReportFile, to_json(report));
  crash_point();
}

}  // namespace nibble::quantize
