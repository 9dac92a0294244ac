#include "eval/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/progress.h"
#include "eval/evaluate.h"
#include "eval/task.h"
#include "eval/verdict.h"

namespace nibble::eval {
namespace {

using TableRow = std::vector<std::string>;

/// A label, then for each model its value and, where there is a baseline, what it lost or won against it.
class Table {
 public:
  explicit Table(const Report& report) : report_(report) {}

  template <class Value, class Change>
  void add(std::string label, Value value, Change change) {
    TableRow row{std::move(label)};
    for (std::size_t m = 0; m < report_.models.size(); ++m) {
      row.push_back(value(report_.models[m]));
      if (report_.has_baseline && m > 0) row.push_back(change(report_.models.front(), report_.models[m]));
    }
    rows_.push_back(std::move(row));
  }

  std::string render() const {
    std::vector<std::size_t> widths(rows_.front().size(), 0);
    for (const TableRow& row : rows_) {
      for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], num_columns(row[c]));
    }
    std::string text;
    for (const TableRow& row : rows_) {
      std::string line;
      for (std::size_t c = 0; c < row.size(); ++c) {
        const std::string padding(widths[c] - num_columns(row[c]), ' ');
        line += c == 0 ? fmt::format("{}{}", row[c], padding) : fmt::format("   {}{}", padding, row[c]);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      text += fmt::format("{}\n", line);
    }
    return text;
  }

 private:
  static std::size_t num_columns(std::string_view text) {
    return static_cast<std::size_t>(std::ranges::count_if(text, [](char c) { return (c & '\xc0') != '\x80'; }));
  }

  const Report& report_;
  std::vector<TableRow> rows_;
};

std::string with_error(std::string value, double error, std::string_view format, std::string_view unit) {
  if (std::isfinite(error)) value += " ± " + fmt::format(fmt::runtime(format), error);
  return value + std::string(unit);
}

std::string render_value(const Metric& metric) {
  if (metric.samples.empty()) return "–";
  const double value = metric.value();
  const double error = metric.standard_error();
  switch (metric.spec.kind) {
    case MetricKind::Accuracy:
    case MetricKind::Agreement: return with_error(fmt::format("{:.1f}", 100 * value), 100 * error, "{:.1f}", " %");
    case MetricKind::Perplexity: return with_error(fmt::format("{:.3f}", value), error, "{:.3f}", "");
    case MetricKind::Divergence: break;
  }
  return with_error(fmt::format("{:.4f}", value), error, "{:.4f}", "");
}

std::string render_degradation(const std::optional<Degradation>& degradation) {
  if (!degradation) return "";
  const double percent = degradation->percent;
  if (percent == 0) return "the same";
  return fmt::format("{:.2f} % {}", std::fabs(percent), percent < 0 ? "better" : "worse");
}

std::string ratio(double baseline, double model, std::string_view more, std::string_view less) {
  if (!(baseline > 0) || !(model > 0)) return "";
  return baseline >= model ? fmt::format("{:.2f}x {}", baseline / model, less)
                           : fmt::format("{:.2f}x {}", model / baseline, more);
}

void add_sizes(Table& table) {
  const auto smaller = [](auto member) {
    return [member](const ModelReport& baseline, const ModelReport& model) {
      return ratio(static_cast<double>(baseline.*member), static_cast<double>(model.*member), "larger", "smaller");
    };
  };
  const auto nothing = [](const ModelReport&, const ModelReport&) { return std::string(); };
  table.add(
      "size on disk", [](const ModelReport& m) { return format_bytes(static_cast<double>(m.checkpoint_bytes)); },
      smaller(&ModelReport::checkpoint_bytes));
  table.add(
      "weights in memory", [](const ModelReport& m) { return format_bytes(static_cast<double>(m.weight_bytes)); },
      smaller(&ModelReport::weight_bytes));
  table.add("bits per weight", [](const ModelReport& m) { return fmt::format("{:.2f}", m.bits_per_weight); }, nothing);
}

void add_speeds(const Report& report, Table& table) {
  table.add(
      "scoring tokens/s", [](const ModelReport& m) { return fmt::format("{:.1f}", m.scoring_tokens_per_second); },
      [](const ModelReport& baseline, const ModelReport& model) {
        return ratio(baseline.scoring_tokens_per_second, model.scoring_tokens_per_second, "faster", "slower");
      });
  if (!report.models.front().decode_tokens_per_second) return;
  table.add(
      "decode tokens/s", [](const ModelReport& m) { return fmt::format("{:.1f}", m.decode_tokens_per_second.value()); },
      [](const ModelReport& baseline, const ModelReport& model) {
        return ratio(baseline.decode_tokens_per_second.value(), model.decode_tokens_per_second.value(), "faster",
                     "slower");
      });
}

void add_metrics(const Report& report, Table& table) {
  for (std::size_t i = 0; i < report.models.front().metrics.size(); ++i) {
    table.add(
        report.models.front().metrics[i].spec.label,
        [i](const ModelReport& model) { return render_value(model.metrics[i]); },
        [i](const ModelReport&, const ModelReport& model) { return render_degradation(model.degradations[i]); });
  }
}

const Metric& find_metric(const ModelReport& model, std::string_view name) {
  return *std::ranges::find(model.metrics, name,
                            [](const Metric& metric) { return std::string_view(metric.spec.name); });
}

std::string render_judgment(const ModelReport& model, const Judgment& judgment) {
  const Metric& metric = find_metric(model, judgment.metric);
  const bool is_percent = metric.spec.kind != MetricKind::Divergence;
  const std::string_view unit = is_percent ? " %" : " nats";
  std::string line = with_error(fmt::format(fmt::runtime(is_percent ? "{:.2f}" : "{:.4f}"), judgment.value),
                                judgment.standard_error, is_percent ? "{:.2f}" : "{:.4f}", unit);
  line = fmt::format("  {}: {}{}, at most {}{} allowed: {}\n", judgment.metric, is_percent ? "degradation " : "", line,
                     judgment.limit, unit, judgment.passed ? "passed" : "failed");
  if (judgment.standard_error > judgment.limit) {
    line += fmt::format("  {}: {} items cannot tell {}{} from chance (one standard error is {:.2f}{}); use more\n",
                        judgment.metric, metric.samples.size(), judgment.limit, unit, judgment.standard_error, unit);
  }
  return line;
}

std::string render_verdicts(const Report& report) {
  std::string text;
  for (std::size_t m = 1; m < report.models.size(); ++m) {
    const ModelReport& model = report.models[m];
    text += fmt::format("{}: {}\n", model.name, name(model.verdict.outcome));
    for (const Judgment& judgment : model.verdict.judgments) text += render_judgment(model, judgment);
  }
  if (report.outcome() == Outcome::NotJudged) text += "  no threshold is set: --max-degradation, --max-kl\n";
  return text;
}

Json metric_json(const Metric& metric, const std::optional<Degradation>& degradation) {
  Json json{
      {"value", metric.value()}, {"standard_error", metric.standard_error()}, {"num_samples", metric.samples.size()}};
  if (degradation) {
    json["degradation_percent"] = degradation->percent;
    json["degradation_standard_error"] = degradation->standard_error;
  }
  return json;
}

Json verdict_json(const Verdict& verdict) {
  Json judgments = Json::array();
  for (const Judgment& judgment : verdict.judgments) {
    judgments.push_back({{"metric", judgment.metric},
                         {"value", judgment.value},
                         {"standard_error", judgment.standard_error},
                         {"limit", judgment.limit},
                         {"passed", judgment.passed}});
  }
  return {{"outcome", name(verdict.outcome)}, {"judgments", std::move(judgments)}};
}

Json model_json(const ModelReport& model, bool is_baseline) {
  Json json{{"name", model.name},
            {"is_baseline", is_baseline},
            {"description", model.description},
            {"checkpoint_bytes", model.checkpoint_bytes},
            {"weight_bytes", model.weight_bytes},
            {"bits_per_weight", model.bits_per_weight},
            {"scored_tokens", model.scored_tokens},
            {"scoring_tokens_per_second", model.scoring_tokens_per_second}};
  if (model.decode_tokens_per_second) json["decode_tokens_per_second"] = *model.decode_tokens_per_second;
  json["metrics"] = Json::object();
  for (std::size_t i = 0; i < model.metrics.size(); ++i) {
    json["metrics"][model.metrics[i].spec.name] = metric_json(model.metrics[i], model.degradations[i]);
  }
  if (!is_baseline) json["verdict"] = verdict_json(model.verdict);
  return json;
}

}  // namespace

std::string render_table(const Report& report) {
  Table table(report);
  table.add(
      "", [&](const ModelReport& m) { return m.name; },
      [](const ModelReport&, const ModelReport&) { return std::string("against baseline"); });
  add_sizes(table);
  add_metrics(report, table);
  add_speeds(report, table);
  std::string text = table.render();
  text += "± is one standard error.\n";
  if (report.has_baseline) text += fmt::format("\n{}", render_verdicts(report));
  return text;
}

Json to_json(const Report& report, const Json& parameters) {
  Json json{{"parameters", parameters}, {"outcome", name(report.outcome())}, {"models", Json::array()}};
  for (std::size_t m = 0; m < report.models.size(); ++m) {
    json["models"].push_back(model_json(report.models[m], report.has_baseline && m == 0));
  }
  json["items"] = Json::object();
  for (const auto& [task, models] : report.rows) json["items"][task] = models;
  return json;
}

}  // namespace nibble::eval
