#include "verify/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "core/error.h"
#include "core/thread_pool.h"
#include "formats/checkpoint.h"
#include "formats/linear_format.h"
#include "formats/quantized_modules.h"
#include "models/block.h"
#include "models/config.h"
#include "verify/channel_order.h"
#include "verify/codebook_rows.h"
#include "verify/files.h"
#include "verify/layer_scales.h"
#include "verify/module_stats.h"
#include "verify/text_check.h"
#include "verify/unit_pairs.h"
#include "verify/values.h"

namespace nibble::verify {
namespace {

/// Codes that the mean of a linear may lie off its zero points. Of trained weights in 2 to 4 bits it stays below 0.05,
/// in 8 bits below 0.5, so there the median of all linears decides.
constexpr double kMaxMeanOffset = 0.5;
constexpr double kMaxMedianOffset = 0.6;
/// Part of the groups that must miss their grid's ends by chance before a verdict on wrong groups, and the part of that
/// count which the stored groups may miss. Healthy files stay below 0.3 where the first is met.
constexpr double kMinUnreachedAtRandom = 0.025;
constexpr double kMaxUnreachedPart = 0.6;
/// Mean codes and zero points of groups follow each other: 0.84 and more in healthy files of 2 to 8 bits, within 0.11
/// of zero where columns were dealt to other groups.
constexpr double kMinZeroCorrelation = 0.4;
/// Reordered zero points that fit so much better must have been packed in the other order.
constexpr double kZeroVarianceGain = 0.6;
constexpr double kMinZeroVariance = 0.5;

enum class ErrorIs : std::uint8_t { Finding, Obstacle };

/// What the file contradicts is a finding; what keeps nibble from judging is not.
ErrorIs classify(const Error& error) {
  return error.code() == ErrorCode::Corrupt || error.code() == ErrorCode::InvalidArgument ? ErrorIs::Finding
                                                                                          : ErrorIs::Obstacle;
}

/// The suffix of the tensor that a quantized linear's scales or codes stand in.
struct TensorNames {
  std::string codes = "weight";
  std::string scales = "weight";
  std::string zeros = "weight";
};

TensorNames names_of(const formats::Checkpoint& checkpoint, const std::string& module) {
  const formats::ModuleTensors tensors(checkpoint, module);
  const auto first_of = [&](std::initializer_list<const char*> suffixes) -> std::string {
    for (const char* suffix : suffixes)
      if (tensors.contains(suffix)) return suffix;
    return "weight";
  };
  return {first_of({"qweight", "weight_packed"}),
          first_of({"scales", "weight_scale", "weight_scale_inv", "lookup_table"}),
          first_of({"qzeros", "weight_zero_point"})};
}

/// One linear of a block: what was read of it, or what kept it from being read.
struct LinearResult {
  std::string relative;
  std::string module;
  std::vector<Finding> findings;
  std::optional<ModuleStats> stats;
};

class Verification {
 public:
  Verification(const formats::Checkpoint& checkpoint, const VerifyOptions& options)
      : checkpoint_(checkpoint),
        options_(options),
        pool_(options.num_threads),
        config_(models::parse_model_config(checkpoint.config())),
        architecture_(models::find_architecture(config_.architecture)) {}

  VerifyReport run() {
    check_float_tensors();
    check_outer_tensors();
    for (std::int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      check_block(architecture_.block(config_, layer));
      options_.on_block("Verifying", layer + 1, config_.num_hidden_layers);
    }
    for (Finding& finding : layer_scales_.check(scale_suffix_)) add(std::move(finding));
    check_median_offset();
    check_text_loss();
    return std::move(report_);
  }

 private:
  void add(Finding finding) { report_.findings.push_back(std::move(finding)); }

  /// Every float tensor's numbers, and dtypes that cannot be read.
  void check_float_tensors() {
    const std::vector<std::string> names = checkpoint_.tensor_names();
    report_.num_tensors = static_cast<std::int64_t>(names.size());
    std::vector<std::optional<Finding>> found(names.size());
    pool_.run(report_.num_tensors, [&](std::int64_t task, int) {
      const std::string& name = names[static_cast<std::size_t>(task)];
      try {
        found[static_cast<std::size_t>(task)] = check_values(name, checkpoint_.tensor(name));
      } catch (const Error& error) {
        found[static_cast<std::size_t>(task)] = Finding{name, error.what()};
      }
      checkpoint_.drop_pages(formats::module_of_tensor(name));
    });
    for (std::optional<Finding>& finding : found) {
      if (!finding) continue;
      broken_.insert(formats::module_of_tensor(finding->where));
      add(std::move(*finding));
    }
  }

  void expect_tensor(const std::string& name, const Shape& shape) {
    if (!checkpoint_.contains(name)) {
      add({name, "is missing"});
      return;
    }
    const Shape found = checkpoint_.tensor(name).shape();
    if (found == shape) return;
    add({name, fmt::format("expected shape {}, found {}", shape.to_string(), found.to_string())});
  }

  /// Embedding, final norm and lm_head.
  void check_outer_tensors() {
    const Shape table{config_.vocab_size, config_.hidden_size};
    expect_tensor(std::string(architecture_.embedding) + ".weight", table);
    expect_tensor(std::string(architecture_.final_norm) + ".weight", {config_.hidden_size});
    const std::string head(architecture_.lm_head);
    if (!config_.tie_word_embeddings) {
      LinearResult result = check_linear(head, head, table, {}, {});
      for (Finding& finding : result.findings) add(std::move(finding));
    }
  }

  std::vector<float> norm_of(const models::BlockSpec& spec, models::Prepare prepare) const {
    const bool is_input = prepare == models::Prepare::InputNorm;
    if (!is_input && prepare != models::Prepare::PostAttentionNorm) return {};
    const std::string name = spec.module_name(is_input ? spec.input_norm : spec.post_attention_norm) + ".weight";
    if (!checkpoint_.contains(name)) return {};
    const TensorView stored = checkpoint_.tensor(name);
    if (!is_float(stored.dtype()) || stored.shape() != Shape{spec.hidden_size}) return {};
    const Tensor norm = to_dtype(stored, DType::F32);
    const auto values = norm.span<float>();
    return {values.begin(), values.end()};
  }

  void check_block(const models::BlockSpec& spec) {
    for (const std::string& norm : {spec.input_norm, spec.post_attention_norm}) {
      expect_tensor(spec.module_name(norm) + ".weight", {spec.hidden_size});
    }
    const PairPlan plan = plan_pairs(spec);
    std::vector<LinearResult> results;
    std::vector<std::vector<float>> norms;
    for (const models::Stage& stage : spec.stages) {
      for (const std::string& relative : stage.linears) {
        results.push_back({relative, spec.module_name(relative), {}, {}});
        norms.push_back(norm_of(spec, stage.prepare));
      }
    }
    pool_.run(static_cast<std::int64_t>(results.size()), [&](std::int64_t task, int) {
      LinearResult& result = results[static_cast<std::size_t>(task)];
      const auto choice = plan.choices.find(result.relative);
      result = check_linear(result.relative, result.module, models::linear_shape(spec, result.relative),
                            norms[static_cast<std::size_t>(task)],
                            choice != plan.choices.end() ? choice->second : UnitChoice{});
    });
    finish_block(spec, plan, std::move(results));
  }

  void finish_block(const models::BlockSpec& spec, const PairPlan& plan, std::vector<LinearResult> results) {
    std::map<std::string, ModuleStats> stats;
    for (LinearResult& result : results) {
      for (Finding& finding : result.findings) add(std::move(finding));
      if (!result.stats) continue;
      if (result.stats->grid) offsets_.emplace_back(result.stats->grid->mean_offset, result.module);
      stats.emplace(result.relative, std::move(*result.stats));
    }
    if (results.empty()) return;
    const TensorNames names = names_of(checkpoint_, results.front().module);
    scale_suffix_ = names.scales;
    code_suffix_ = names.codes;
    std::set<std::string> named;
    for (Finding& finding : check_interleaving(spec, plan, stats, packing(), names.codes)) {
      named.insert(formats::module_of_tensor(finding.where));
      add(std::move(finding));
    }
    for (Finding& finding : check_query_key_channels(spec, stats, packing(), names.codes, named)) {
      add(std::move(finding));
    }
    layer_scales_.add(spec, stats);
  }

  Packing packing() const {
    const auto& quantization = checkpoint_.quantization();
    if (!quantization) return Packing::Other;
    if (quantization->method == "awq") return Packing::AlongOutputsAsAwq;
    const bool is_along_inputs = quantization->method == "gptq" || quantization->method == "compressed-tensors";
    return is_along_inputs ? Packing::AlongInputs : Packing::Other;
  }

  /// Reads a linear and looks at it alone. Called from the pool: catches everything.
  LinearResult check_linear(const std::string& relative, const std::string& module, const Shape& shape,
                            std::span<const float> norm, const UnitChoice& choice) {
    LinearResult result{relative, module, {}, {}};
    try {
      const weights::LinearWeights weights = checkpoint_.linear(module, shape);
      count_linear(module, weights, result.findings);
      check_bias(module, shape[0]);
      if (broken_.contains(module)) return result;  // a NaN would be found again in every figure
      const TensorNames names = names_of(checkpoint_, module);
      result.stats = compute_stats(weights, norm, choice);
      judge(module, names, *result.stats, result.findings);
      check_group_order(module, weights, result.findings);
    } catch (const Error& error) {
      if (broken_.contains(module)) return result;  // said already, with the element
      result.findings.push_back({module, without_folder(error.what())});
    }
    checkpoint_.release(module);
    return result;
  }

  void check_bias(const std::string& module, std::int64_t out_features) { checkpoint_.bias(module, out_features); }

  void count_linear(const std::string& module, const weights::LinearWeights& weights, std::vector<Finding>& findings) {
    const std::lock_guard lock(mutex_);
    ++report_.num_linears;
    if (const auto* codebook = std::get_if<weights::CodebookWeights>(&weights)) {
      for (Finding& finding : codebook_rows_.add(module, *codebook)) findings.push_back(std::move(finding));
    }
  }

  /// Errors of a reader begin with the folder, which the report names once.
  std::string without_folder(std::string text) const {
    const std::string prefix = checkpoint_.path().string() + ": ";
    return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
  }

  void judge(const std::string& module, const TensorNames& names, const ModuleStats& stats,
             std::vector<Finding>& findings) const {
    constexpr float kLargestHalf = 65504;
    if (stats.largest > kLargestHalf) {
      findings.push_back({fmt::format("{}.{}", module, names.scales),
                          fmt::format("makes a weight of {:.3g}, which overflows f16 (65504)", stats.largest)});
    }
    if (stats.skewed_table_row) {
      findings.push_back(
          {fmt::format("{}.{}", module, names.scales),
           fmt::format("row {} does not fit its codes: the weights of the row are far from a mean of zero",
                       *stats.skewed_table_row)});
    }
    if (stats.grid) judge_grid(module, names, *stats.grid, findings);
  }

  void judge_grid(const std::string& module, const TensorNames& names, const GridStats& grid,
                  std::vector<Finding>& findings) const {
    const std::string zeros = fmt::format("{}.{}", module, names.zeros);
    const int middle = 1 << (grid.bits - 1);
    const bool is_off_middle = grid.uniform_zero && std::abs(*grid.uniform_zero - middle) == 1;
    if (is_off_middle || (grid.bits <= 4 && std::abs(grid.mean_offset) > kMaxMeanOffset)) {
      findings.push_back({zeros, fmt::format("zero points are off by one (GPTQ v1 and v2 taken for each other?): the "
                                             "codes lie {:.2f} above them on average",
                                             grid.mean_offset)});
    } else if (grid.zero_variance > kMinZeroVariance &&
               grid.zero_variance_reordered < kZeroVarianceGain * grid.zero_variance) {
      findings.push_back({zeros, fmt::format("zero points are interleaved in another order than the codes: in the "
                                             "other order they fit the codes {:.1f} times better",
                                             grid.zero_variance / grid.zero_variance_reordered)});
      return;  // zero points of other rows tell nothing about groups
    }
    judge_groups(module, names, grid, findings);
  }

  void judge_groups(const std::string& module, const TensorNames& names, const GridStats& grid,
                    std::vector<Finding>& findings) const {
    const auto at_random = static_cast<double>(grid.unreached_at_random);
    const bool misses_ends = at_random > kMinUnreachedAtRandom * static_cast<double>(grid.num_counted) &&
                             grid.unreached_at_random >= 20 &&
                             static_cast<double>(grid.unreached) > kMaxUnreachedPart * at_random;
    const bool misses_zeros = grid.zero_correlation.value_or(1) < kMinZeroCorrelation;
    if (!misses_ends && !misses_zeros) return;
    const formats::ModuleTensors tensors(checkpoint_, module);
    const std::string suffix = tensors.contains("g_idx") ? "g_idx" : names.codes;
    const std::string evidence =
        misses_ends ? fmt::format("{} groups miss the ends of their grid, and {} with columns dealt at random",
                                  grid.unreached, grid.unreached_at_random)
                    : fmt::format(
                          "mean codes and zero points of groups have a correlation of {:.2f}, where own groups "
                          "have 0.8 and more",
                          *grid.zero_correlation);
    findings.push_back({fmt::format("{}.{}", module, suffix),
                        "its groups are not those that the scales were made for (a shuffled g_idx, or desc_act without "
                        "it): " +
                            evidence});
  }

  /// Peers choose their kernel by the config's desc_act.
  void check_group_order(const std::string& module, const weights::LinearWeights& weights,
                         std::vector<Finding>& findings) const {
    const auto* grouped = std::get_if<weights::GroupedIntWeights>(&weights);
    const auto& quantization = checkpoint_.quantization();
    if (grouped == nullptr || !grouped->has_g_idx() || quantization->method != "gptq" || quantization->desc_act) return;
    if (quantization->raw.contains("dynamic")) return;  // modules may have a desc_act of their own
    findings.push_back({module + ".g_idx",
                        "scatters the groups, but the config says desc_act false: programs that trust the config "
                        "compute with wrong scales"});
  }

  void check_median_offset() {
    if (offsets_.empty()) return;
    const auto middle = offsets_.begin() + static_cast<std::ptrdiff_t>(offsets_.size() / 2);
    std::ranges::nth_element(offsets_, middle);
    const double median = middle->first;
    const bool is_reported = std::ranges::any_of(report_.findings, [](const Finding& finding) {
      return finding.problem.find("off by one") != std::string::npos;
    });
    if (std::abs(median) < kMaxMedianOffset || is_reported) return;
    const TensorNames names = names_of(checkpoint_, middle->second);
    add({fmt::format("{}.{}", middle->second, names.zeros),
         fmt::format("zero points are off by one in all {} linears (GPTQ v1 and v2 taken for each other?): the codes "
                     "lie {:.2f} above them in the median",
                     offsets_.size(), median)});
  }

  /// A fault that the weights show would only be seen again, less clearly.
  void check_text_loss() {
    if (options_.forward_pass == ForwardPass::Skip) {
      report_.no_forward_pass = "--no-forward";
      return;
    }
    if (!report_.findings.empty()) {
      report_.no_forward_pass = "there are findings without it";
      return;
    }
    std::int64_t done = 0;
    const TextCheckOptions options{
        .sizes = layer_scales_,
        .scale_suffix = scale_suffix_,
        .code_suffix = code_suffix_,
        .num_threads = options_.num_threads,
        .on_block = [&] { options_.on_block("Reading a text", ++done, config_.num_hidden_layers); }};
    TextCheckResult result = check_text(checkpoint_, config_, options);
    for (Finding& finding : result.findings) add(std::move(finding));
    report_.text_loss = result.loss;
    report_.num_text_tokens = result.num_tokens;
    report_.no_forward_pass = std::move(result.skipped);
  }

  const formats::Checkpoint& checkpoint_;
  const VerifyOptions& options_;
  ThreadPool pool_;
  models::ModelConfig config_;
  const models::Architecture& architecture_;
  VerifyReport report_;
  std::mutex mutex_;  // report_.num_linears and codebook_rows_, while linears are read in parallel
  CodebookRows codebook_rows_;
  LayerScales layer_scales_;
  std::string scale_suffix_ = "weight";
  std::string code_suffix_ = "weight";
  std::set<std::string> broken_;                         // modules with a number that is wrong in itself
  std::vector<std::pair<double, std::string>> offsets_;  // mean code - zero point of each integer linear
};

}  // namespace

VerifyReport verify_checkpoint(const VerifyOptions& options) {
  VerifyReport report;
  if (std::filesystem::is_directory(options.model)) {
    report.findings = check_shards(options.model);
    if (!report.findings.empty()) return report;
  }
  try {
    const auto checkpoint = formats::Checkpoint::open(options.model);
    return Verification(*checkpoint, options).run();
  } catch (const Error& error) {
    if (classify(error) == ErrorIs::Obstacle) throw;
    const std::filesystem::path path = options.model / "";  // a folder's name, with or without a slash at its end
    report.findings.push_back({path.parent_path().filename().string(), error.what()});
    return report;
  }
}

Json to_json(const VerifyReport& report) {
  Json findings = Json::array();
  for (const Finding& finding : report.findings) {
    findings.push_back({{"tensor", finding.where}, {"problem", finding.problem}});
  }
  Json forward = Json::object();
  if (report.text_loss) forward = {{"tokens", report.num_text_tokens}, {"loss", *report.text_loss}};
  if (!report.no_forward_pass.empty()) forward = {{"skipped", report.no_forward_pass}};
  return {{"tensors", report.num_tensors},
          {"linears", report.num_linears},
          {"forward_pass", std::move(forward)},
          {"findings", std::move(findings)}};
}

}  // namespace nibble::verify
