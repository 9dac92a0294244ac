#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/json.h"
#include "quantize/layer_report.h"

namespace nibble::quantize {

inline constexpr const char* kReportFile = "nibble_report.json";
inline constexpr const char* kReportPage = "report.html";

/// What a quantized checkpoint says of itself, for programs (`to_json`) and for people (`render_html`). From the record
/// of what was asked, `nibble reproduce` makes the checkpoint again.
struct Report {
  std::vector<std::string> arguments;  // of `nibble quantize`: everything that shapes the result but output and model
  std::string model;                   // as it was given
  Json identity;                       // run_identity: program, method, digests of model and calibration text, seed
  std::string checkpoint_format;       // "gptq", "awq", …
  std::int64_t input_bytes = 0;
  std::int64_t output_bytes = 0;    // of all tensors
  std::vector<LayerReport> layers;  // in the order of the model
  Json judged;                      // metrics of the whole model by name, where it was judged; else null

  /// Wall time of all layers.
  double seconds() const;
  /// Bits a weight over all layers, as stored.
  double bits_per_weight() const;
};

Json to_json(const Report& report);
/// Errors: InvalidArgument naming a key that is missing or of another type.
Report report_from_json(const Json& json);

/// One HTML page that needs nothing else: totals, errors by block and by linear, the range of scales, a table.
std::string render_html(const Report& report);

}  // namespace nibble::quantize
