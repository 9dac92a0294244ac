#include "quantize/report.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kReportVersion = 1;

double num_weights(const LayerReport& layer) {
  return static_cast<double>(layer.out_features) * static_cast<double>(layer.in_features);
}

}  // namespace

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
          {"judged", report.judged},
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
  report.judged = json["judged"];
  if (!json["layers"].is_array()) throw Error(ErrorCode::InvalidArgument, "layers: is not a list");
  for (const Json& layer : json["layers"]) report.layers.push_back(layer_report_from_json(layer));
  return report;
}

}  // namespace nibble::quantize
