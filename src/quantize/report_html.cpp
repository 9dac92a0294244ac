#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "core/progress.h"
#include "quantize/report.h"

namespace nibble::quantize {
namespace {

constexpr std::string_view kStyle = R"(
:root { --ink: #1b1f24; --quiet: #667; --line: #d8dce2; --page: #fff; --written: #1f5fae; --nearest: #b4552d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --quiet: #9aa3ae; --line: #333a44; --page: #14171b; --written: #6aa9f4; --nearest: #e08b62; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p.note { color: var(--quiet); margin: .2rem 0 .6rem; max-width: 46rem; }
dl { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1.2rem 0; }
dt { color: var(--quiet); font-size: .8rem; } dd { margin: 0; font-size: 1.25rem; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { position: sticky; top: 0; background: var(--page); }
svg { max-width: 100%; height: auto; } svg text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .series.written { stroke: var(--written); }
svg .series.nearest { stroke: var(--nearest); }
svg .series { fill: none; stroke-width: 2; } svg text.written { fill: var(--written); }
svg text.nearest { fill: var(--nearest); } pre { white-space: pre-wrap; font-size: .8rem; }
)";

std::string escape(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&': escaped += "&amp;"; break;
      case '<': escaped += "&lt;"; break;
      case '>': escaped += "&gt;"; break;
      case '"': escaped += "&quot;"; break;
      default: escaped += c;
    }
  }
  return escaped;
}

/// "model.layers.12.self_attn.q_proj" is linear "self_attn.q_proj" of block 12.
struct Place {
  int block = 0;
  std::string kind;
};

Place place_of(const std::string& name) {
  for (std::size_t at = 0; at < name.size();) {
    const std::size_t end = std::min(name.find('.', at), name.size());
    int number = 0;
    const auto [rest, error] = std::from_chars(name.data() + at, name.data() + end, number);
    if (error == std::errc() && rest == name.data() + end && end < name.size()) return {number, name.substr(end + 1)};
    at = end + 1;
  }
  return {0, name};
}

using Metric = std::function<std::optional<double>(const LayerReport&)>;

std::optional<double> output_error(const LayerReport& layer) {
  return layer.output_error;
}
std::optional<double> rtn_error(const LayerReport& layer) {
  return layer.rtn_error;
}
std::optional<double> weight_error(const LayerReport& layer) {
  return layer.weight_error;
}
std::optional<double> clipped_fraction(const LayerReport& layer) {
  return layer.clipped_fraction;
}

/// Mean over each block's linears that have it.
std::map<int, double> mean_by_block(const std::vector<LayerReport>& layers, const Metric& metric) {
  std::map<int, std::pair<double, int>> sums;
  for (const LayerReport& layer : layers) {
    const auto value = metric(layer);
    if (!value) continue;
    auto& [sum, count] = sums[place_of(layer.name).block];
    sum += *value;
    ++count;
  }
  std::map<int, double> means;
  for (const auto& [block, sum] : sums) means[block] = sum.first / sum.second;
  return means;
}

std::string percent(double fraction) {
  return fmt::format("{:.3g} %", 100 * fraction);
}

/// A logarithmic axis over positive values.
class LogScale {
 public:
  void include(double value) {
    if (!(value > 0) || !std::isfinite(value)) return;
    low_ = std::min(low_, std::log10(value));
    high_ = std::max(high_, std::log10(value));
  }
  /// Widens it to whole powers of ten.
  void round_out() {
    low_ = std::floor(low_);
    high_ = std::ceil(high_);
  }
  bool is_empty() const { return low_ > high_; }
  /// 0 at the low end, 1 at the high end.
  double place(double value) const {
    if (!(value > 0)) return 0;
    return high_ > low_ ? std::clamp((std::log10(value) - low_) / (high_ - low_), 0.0, 1.0) : 0.5;
  }
  /// Powers of ten.
  double low() const { return low_; }
  double high() const { return high_; }

 private:
  double low_ = std::numeric_limits<double>::infinity();
  double high_ = -std::numeric_limits<double>::infinity();
};

constexpr double kLeft = 64;
constexpr double kWidth = 860;
constexpr double kHeight = 220;

std::string line_of(const std::map<int, double>& values, const LogScale& scale, int last_block, const char* kind) {
  std::string points;
  for (const auto& [block, value] : values) {
    const double x = kLeft + kWidth * block / std::max(last_block, 1);
    points += fmt::format("{:.1f},{:.1f} ", x, 10 + kHeight * (1 - scale.place(value)));
  }
  return fmt::format(R"(<polyline class="series {}" points="{}"/>)", kind, points);
}

/// Error by block: what was written, and what rounding to nearest would have cost.
std::string error_chart(const Report& report) {
  const bool calibrated =
      std::ranges::any_of(report.layers, [](const auto& layer) { return layer.output_error.has_value(); });
  const auto written = mean_by_block(report.layers, calibrated ? output_error : weight_error);
  const auto nearest = mean_by_block(report.layers, rtn_error);
  LogScale scale;
  for (const auto* series : {&written, &nearest}) {
    for (const auto& [block, value] : *series) scale.include(value);
  }
  if (scale.is_empty()) return {};
  scale.round_out();
  const int last_block = written.rbegin()->first;
  std::string svg = fmt::format(R"(<svg viewBox="0 0 960 {}" role="img">)", kHeight + 50);
  for (double power = scale.low(); power <= scale.high(); ++power) {
    const double y = 10 + kHeight * (1 - scale.place(std::pow(10.0, power)));
    svg += fmt::format(R"(<line class="axis" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>)", kLeft, kLeft + kWidth, y);
    svg += fmt::format(R"(<text x="{}" y="{:.1f}" text-anchor="end">{}</text>)", kLeft - 8, y + 4,
                       percent(std::pow(10.0, power)));
  }
  for (const int block : {0, last_block / 2, last_block}) {
    svg += fmt::format(R"(<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>)",
                       kLeft + kWidth * block / std::max(last_block, 1), kHeight + 28, block);
  }
  if (!nearest.empty()) svg += line_of(nearest, scale, last_block, "nearest");
  svg += line_of(written, scale, last_block, "written");
  svg += fmt::format(R"(<text class="written" x="{}" y="{}">— as written</text>)", kLeft, kHeight + 45);
  if (!nearest.empty()) {
    svg +=
        fmt::format(R"(<text class="nearest" x="{}" y="{}">— if rounded to nearest</text>)", kLeft + 100, kHeight + 45);
  }
  return fmt::format("<h2>{} by block</h2><p class=\"note\">{}</p>{}</svg>\n",
                     calibrated ? "Output error" : "Weight error",
                     calibrated ? "Squared error of the linears' outputs on the calibration data, relative to the "
                                  "outputs; mean over the block's linears, logarithmic."
                                : "Squared error of the weights relative to the weights; mean over the block's "
                                  "linears, logarithmic. No calibration: errors of outputs are not known.",
                     svg);
}

/// Pale to dark blue.
std::string shade(double t) {
  const auto mix = [t](double pale, double dark) { return static_cast<int>(std::lround(pale + t * (dark - pale))); };
  return fmt::format("rgb({},{},{})", mix(226, 10), mix(237, 52), mix(249, 115));
}

/// One cell a linear: blocks from left to right, kinds from top to bottom.
std::string heat_map(const Report& report, const Metric& metric, std::string_view title, std::string_view note) {
  LogScale scale;
  std::vector<std::string> kinds;
  int last_block = 0;
  for (const LayerReport& layer : report.layers) {
    const auto value = metric(layer);
    if (!value) continue;
    scale.include(*value);
    const Place place = place_of(layer.name);
    last_block = std::max(last_block, place.block);
    if (std::ranges::find(kinds, place.kind) == kinds.end()) kinds.push_back(place.kind);
  }
  if (scale.is_empty()) return {};
  constexpr double kLabels = 150;
  constexpr double kRow = 18;
  const double cell = std::min(28.0, (960 - kLabels) / (last_block + 1));
  std::string svg =
      fmt::format(R"(<svg viewBox="0 0 960 {}" role="img">)", kRow * static_cast<double>(kinds.size()) + 4);
  for (std::size_t row = 0; row < kinds.size(); ++row) {
    svg += fmt::format(R"(<text x="{}" y="{:.0f}" text-anchor="end">{}</text>)", kLabels - 8,
                       kRow * static_cast<double>(row) + 13, escape(kinds[row]));
  }
  for (const LayerReport& layer : report.layers) {
    const auto value = metric(layer);
    if (!value) continue;
    const Place place = place_of(layer.name);
    const auto row = static_cast<double>(std::ranges::find(kinds, place.kind) - kinds.begin());
    svg +=
        fmt::format(R"(<rect x="{:.1f}" y="{:.0f}" width="{:.1f}" height="{}" fill="{}"><title>{}: {}</title></rect>)",
                    kLabels + cell * place.block, kRow * row, cell - 1, kRow - 1, shade(scale.place(*value)),
                    escape(layer.name), percent(*value));
  }
  return fmt::format("<h2>{}</h2><p class=\"note\">{} Pale is {}, dark is {}.</p>{}</svg>\n", title, note,
                     percent(std::pow(10.0, scale.low())), percent(std::pow(10.0, scale.high())), svg);
}

std::string optional_percent(const std::optional<double>& value) {
  return value ? percent(*value) : "–";
}

std::string table(const Report& report) {
  std::string rows;
  for (const LayerReport& layer : report.layers) {
    rows += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{} × {}</td><td>{:.2f}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.3g} … "
        "{:.3g}</td><td>{}</td><td>{:.2f}</td></tr>\n",
        escape(layer.name), escape(layer.kind), layer.out_features, layer.in_features, layer.bits_per_weight,
        percent(layer.weight_error), optional_percent(layer.rtn_error), optional_percent(layer.output_error),
        layer.scale_min, layer.scale_max, optional_percent(layer.clipped_fraction), layer.seconds);
  }
  return "<h2>Every linear</h2><details><summary>" + std::to_string(report.layers.size()) +
         " linears</summary><table><thead><tr><th>linear</th><th>kind</th><th>out × in</th><th>bits</th><th>weight "
         "error</th><th>output error, nearest</th><th>output error</th><th>scales</th><th>clipped</th><th>s</th></tr>"
         "</thead><tbody>\n" +
         rows + "</tbody></table></details>\n";
}

std::string figure(std::string_view name, std::string_view value) {
  return fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", name, value);
}

std::string totals(const Report& report) {
  const auto input = static_cast<double>(report.input_bytes);
  const auto output = static_cast<double>(report.output_bytes);
  std::string text = "<dl>";
  text += figure("size", fmt::format("{} → {}", format_bytes(input), format_bytes(output)));
  text += figure("smaller", fmt::format("{:.2f}×", output > 0 ? input / output : 0));
  text += figure("bits a weight", fmt::format("{:.2f}", report.bits_per_weight()));
  text += figure("time", format_duration(report.seconds()));
  return text + "</dl>\n";
}

std::string judgment(const Report& report) {
  if (!report.judged) return {};
  const Judgment& judged = *report.judged;
  std::string text = "<h2>What it cost</h2><p class=\"note\">" +
                     fmt::format(
                         "The written checkpoint against the float model, token by token, on {} windows of {} "
                         "tokens of {}; activations in f32. ± is one standard error.",
                         judged.num_windows, judged.window_len, escape(judged.text)) +
                     "</p><dl>";
  text += figure("KL to the float model", fmt::format("{:.4f} ± {:.4f} nats", judged.kl, judged.kl_standard_error));
  text += figure("same most likely token", fmt::format("{:.1f} %", 100 * judged.top1));
  text += figure("perplexity", fmt::format("{:.2f}", judged.ppl));
  text += figure("of the float model", fmt::format("{:.2f}", judged.float_ppl));
  if (judged.max_kl) {
    text +=
        figure(fmt::format("at most {} nats allowed", *judged.max_kl), judged.is_rejected ? "rejected" : "accepted");
  }
  return text + "</dl>\n";
}

}  // namespace

std::string render_html(const Report& report) {
  const std::string title = escape(report.model);
  std::string page = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>" + title +
                     ", quantized</title><style>" + std::string(kStyle) + "</style></head><body>\n";
  page += fmt::format("<h1>{}</h1><p class=\"note\">quantized by nibble into the {} format</p>\n", title,
                      escape(report.checkpoint_format));
  page += totals(report);
  page += judgment(report);
  page += error_chart(report);
  page += heat_map(report, output_error, "Output error by linear", "Where the method lost most.");
  page += heat_map(report, clipped_fraction, "Clipped weights", "Weights outside what their group's grid reaches.");
  page += table(report);
  std::string arguments;
  for (const std::string& argument : report.arguments) arguments += " " + argument;
  page += "<h2>Record</h2><p class=\"note\">nibble reproduce makes this checkpoint again from " +
          std::string(kReportFile) + ".</p><pre>nibble quantize MODEL" + escape(arguments) + "\n" +
          escape(report.identity.dump(2)) + "</pre>\n</body></html>\n";
  return page;
}

}  // namespace nibble::quantize
