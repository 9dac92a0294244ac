#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "quantize/layer_report.h"

namespace nibble::quantize {

inline constexpr const char* kReportFile = "nibble_report.json";
inline constexpr const char* kReportPage = "report.html";

/// What quantizing cost the whole model: the written checkpoint against the float one, measured as `nibble eval
/// --exact` measures. A model that gives NaN has NaN here, which JSON shows as null.
struct Judgment {
  double kl = 0;  // mean KL(float || quantized) of the next token, nats
  double kl_standard_error = 0;
  double top1 = 0;  // how often the most likely token is the float model's, 0 … 1
  double ppl = 0;
  double float_ppl = 0;
  std::string text;  // "test.txt", or "train.txt, held out"
  std::int64_t num_windows = 0;
  std::int64_t window_len = 0;   // tokens; all but each window's first are predicted
  std::optional<double> max_kl;  // the threshold, where one was set
  bool is_rejected = false;      // by it

  /// "KL 0.1032 ± 0.0041 nats, top-1 agreement 81.2 %, perplexity 26.81 (float: 24.70)"
  std::string summary() const;
};

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
  std::optional<Judgment> judged;   // where it was

  /// Wall time of all layers.
  double seconds() const;
  /// Bits a weight over all layers, as stored.
  double bits_per_weight() const;
};

Json to_json(const Report& report);
/// Errors: InvalidArgument naming a key that is missing or of another type.
Report report_from_json(const Json& json);

/// The report of a folder that nibble quantize wrote. Errors: NotFound; as report_from_json, with the file.
Report read_report(const std::filesystem::path& folder);
/// Puts the judgment into the report that lies in the folder, and into its page.
void record_judgment(const std::filesystem::path& folder, const Judgment& judgment);

/// One HTML page that needs nothing else: totals, errors by block and by linear, the range of scales, a table.
std::string render_html(const Report& report);

}  // namespace nibble::quantize
