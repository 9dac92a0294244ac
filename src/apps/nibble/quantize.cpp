#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/nibble/flags.h"
#include "apps/nibble/judge_flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/quantize_flags.h"
#include "apps/nibble/subcommands.h"
#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "hub/hub.h"
#include "quantize/drift.h"
#include "quantize/pipeline.h"
#include "workflow/quantize_and_judge.h"

namespace nibble::apps {
namespace {

using quantize::Symmetry;

constexpr int kDone = 0;
constexpr int kRejected = 3;

/// What the flags say, before they are brought together.
struct QuantizeFlags {
  std::string model;         // positional
  std::string model_option;  // --model
  std::string method;
  std::vector<std::string> calibration;
  std::vector<std::string> layers;  // --layer
  bool sym = false;
  bool asym = false;
  std::string zero_point;  // "" where it was not given
  std::string desc_act;
  std::string rounding = "nearest";
  std::optional<double> drift_correction;
  bool guided = false;
  std::string quality = "standard";
  std::string labels = "sampled";
  std::string fisher = "token";
  std::string weight_strategy = "channel";
  std::string activation_scheme = "dynamic";
  bool kv_cache_scales = false;
  std::string sensitivity = "fisher";
  std::vector<const CLI::Option*> bits;          // of all but FP8
  std::vector<const CLI::Option*> integer_only;  // flags about grids and groups
  std::vector<const CLI::Option*> fp8_only;
  std::vector<const CLI::Option*> codebook_only;
  quantize::PipelineOptions pipeline;
};

std::string methods_text() {
  std::string text;
  for (const quantize::Method& method : quantize::methods()) {
    text += fmt::format("{}{}: {}", text.empty() ? "" : "; ", method.name, method.summary);
  }
  return text;
}

/// "true" or "false", as the guides write `--desc_act true` and `--zero_point False`; nothing for other words.
std::optional<bool> parse_switch(std::string word) {
  std::ranges::transform(word, word.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (word == "true" || word == "1") return true;
  if (word == "false" || word == "0") return false;
  return std::nullopt;
}

/// A switch may stand alone, so a word after it that is no truth value is the model: `--desc_act MODEL`.
void settle_switch(std::string& value, QuantizeFlags& flags) {
  if (value.empty() || parse_switch(value)) return;
  if (!flags.model.empty()) throw CLI::ValidationError(fmt::format("'{}' is neither true nor false", value));
  flags.model = std::exchange(value, "true");
}

/// Runs as a part of parsing: what is wrong here is a usage error.
void settle(QuantizeFlags& flags) {
  settle_switch(flags.zero_point, flags);
  settle_switch(flags.desc_act, flags);
  if (flags.model.empty() == flags.model_option.empty()) {
    throw CLI::ValidationError("give the model once: nibble quantize MODEL, or --model MODEL");
  }
}

Symmetry symmetry_of(const QuantizeFlags& flags, const quantize::Method& method) {
  std::optional<Symmetry> asked;
  const auto ask = [&](Symmetry symmetry) {
    if (asked && *asked != symmetry) {
      throw Error(ErrorCode::InvalidArgument,
                  "--sym, --asym and --zero_point contradict one another; give one of them");
    }
    asked = symmetry;
  };
  if (flags.sym) ask(Symmetry::Symmetric);
  if (flags.asym) ask(Symmetry::Asymmetric);
  if (!flags.zero_point.empty())
    ask(parse_switch(flags.zero_point) == true ? Symmetry::Asymmetric : Symmetry::Symmetric);
  return asked.value_or(method.default_symmetry);
}

/// Flags that were given and have no meaning for the method, in one line.
void name_ignored(const QuantizeFlags& flags, const quantize::Method& method) {
  using quantize::Makes;
  std::string names;
  const auto name = [&](const std::vector<const CLI::Option*>& options) {
    for (const CLI::Option* option : options) {
      if (option->count() > 0) names += (names.empty() ? "--" : ", --") + option->get_lnames().front();
    }
  };
  if (method.makes == Makes::Fp8) name(flags.bits);
  if (method.makes != Makes::GroupedInt) name(flags.integer_only);
  if (method.makes != Makes::Fp8) name(flags.fp8_only);
  if (method.makes != Makes::Codebook) name(flags.codebook_only);
  if (!names.empty()) log::warning("ignored, because {} has no use for it: {}", method.name, names);
}

quantize::Fp8Options fp8_options(const QuantizeFlags& flags) {
  using weights::Fp8Granularity;
  quantize::Fp8Options options = flags.pipeline.method_options.fp8;
  options.granularity = flags.weight_strategy == "tensor"  ? Fp8Granularity::PerTensor
                        : flags.weight_strategy == "block" ? Fp8Granularity::PerBlock
                                                           : Fp8Granularity::PerChannel;
  if (flags.activation_scheme == "static") options.activations = quantize::ActivationScheme::Static;
  if (flags.kv_cache_scales) options.kv_cache_scales = quantize::KvCacheScales::Calibrated;
  return options;
}

quantize::LossOptions loss_options(const QuantizeFlags& flags) {
  quantize::LossOptions options;
  if (flags.labels == "text") options.labels = quantize::LossLabels::Text;
  if (flags.fisher == "sequence") options.fisher_form = quantize::FisherForm::Sequence;
  options.seed = flags.pipeline.calibration.seed;
  return options;
}

/// What costs time only, as docs/quality.md measures it: drift correction for GPTQ at 4 bits, else the end loss as a
/// guide where the method can follow it, GPTQ's rounding for AWQ.
void choose_best(quantize::MethodOptions& options, const quantize::Method& method) {
  if (method.name == "gptq" && options.grid.bits == 4 && options.guidance == quantize::Guidance::Inputs) {
    options.drift_correction = quantize::kBestDriftCorrection;
  } else if (method.name == "gptq" || method.name == "squeezellm") {
    options.guidance = quantize::Guidance::EndLoss;
  } else if (method.name == "awq") {
    options.rounding = quantize::Rounding::Gptq;
  } else {
    log::warning("--quality best: {} has nothing better to offer", method.name);
  }
}

quantize::PipelineOptions pipeline_options(const QuantizeFlags& flags) {
  quantize::PipelineOptions options = flags.pipeline;
  options.model = hub::resolve_model(flags.model.empty() ? flags.model_option : flags.model);
  options.method = flags.method;
  const quantize::Method& method = quantize::find_method(flags.method);
  name_ignored(flags, method);
  if (method.makes == quantize::Makes::Fp8) options.method_options.fp8 = fp8_options(flags);
  if (flags.sensitivity == "hessian") options.method_options.squeezellm.sensitivity = quantize::Sensitivity::Hessian;
  options.method_options.grid.symmetry = symmetry_of(flags, method);
  options.method_options.group_index =
      parse_switch(flags.desc_act) == true ? quantize::GroupIndex::DescAct : quantize::GroupIndex::Trivial;
  if (flags.guided) options.method_options.guidance = quantize::Guidance::EndLoss;
  if (flags.quality == "best") choose_best(options.method_options, method);
  options.method_options.loss = loss_options(flags);
  if (flags.rounding == "gptq") options.method_options.rounding = quantize::Rounding::Gptq;
  if (!options.statistics.empty() && method.calibration(options.method_options) != quantize::Calibration::Loss) {
    throw Error(
        ErrorCode::InvalidArgument,
        fmt::format("--statistics keeps what the end loss says, which {} looks at only with --guided", method.name));
  }
  options.method_options.drift_correction = flags.drift_correction.value_or(
      std::max(options.method_options.drift_correction,
               quantize::default_drift_correction(method, options.method_options, options.calibration)));
  if (method.calibration(options.method_options) == quantize::Calibration::None && !flags.calibration.empty()) {
    log::info("--calibration is ignored: {} looks at weights only", method.name);
  }
  for (const std::string& text : flags.layers) options.layer_overrides.push_back(quantize::parse_layer_override(text));
  if (!flags.calibration.empty()) options.calibration.sources = flags.calibration;
  return options;
}

/// The flags that shape the result, one value after its name, whatever order and spelling they were typed in.
std::vector<std::string> recorded_arguments(const CLI::App& command) {
  constexpr std::array kLeftOut = {"help", "MODEL", "model", "output", "max-memory", "resume", "threads", "statistics"};
  std::vector<std::string> arguments;
  for (const CLI::Option* option : command.get_options()) {
    const std::string name = option->get_single_name();
    if (option->count() == 0 || is_judge_flag(*option) || std::ranges::find(kLeftOut, name) != kLeftOut.end()) continue;
    if (option->get_expected_max() == 0) {
      arguments.push_back("--" + name);
      continue;
    }
    // A switch that stands alone may have caught the model, as settle_switch knows.
    const bool is_switch = option->get_expected_min() == 0;
    for (const std::string& value : option->results()) {
      arguments.push_back("--" + name);
      arguments.push_back(is_switch && !parse_switch(value) ? "true" : value);
    }
  }
  return arguments;
}

int run_quantize(const quantize::PipelineOptions& options, const std::optional<workflow::JudgeOptions>& judge) {
  const auto [report, judgment] = workflow::quantize_and_judge(options, judge);
  print(fmt::format("{}: {} in the {} format from {}, {}\n", options.output.string(),
                    format_bytes(static_cast<double>(report.output_bytes)), report.checkpoint_format,
                    format_bytes(static_cast<double>(report.input_bytes)), format_duration(report.seconds)));
  if (!judgment) return kDone;
  print(fmt::format("{}, on {} windows of {} tokens of {}\n", judgment->summary(), judgment->num_windows,
                    judgment->window_len, judgment->text));
  if (!judgment->is_rejected) return kDone;
  print(fmt::format("rejected: KL {:.4f} nats, at most {} allowed; the checkpoint stays in {}\n", judgment->kl,
                    judgment->max_kl.value(), options.output.string()));
  return kRejected;
}

/// `--name`, `--name true`, `--name=false`.
CLI::Option* add_switch(CLI::App& command, const std::string& names, std::string& value,
                        const std::string& description) {
  return command.add_option(names, value, description)->expected(0, 1)->default_str("true")->type_name("[true|false]");
}

void register_integer_flags(CLI::App& command, QuantizeFlags& flags) {
  quantize::MethodOptions& method = flags.pipeline.method_options;
  flags.bits = {command.add_option("--bits,--w_bit,--w-bit", method.grid.bits, "bits a weight: 2, 3, 4 or 8")
                    ->capture_default_str()};
  flags.integer_only = {
      command
          .add_option("--group-size,--q_group_size,--q-group-size", method.group_size,
                      "inputs that share a scale; -1: a whole row")
          ->capture_default_str(),
      command.add_flag("--sym", flags.sym, "symmetric grids (the default of gptq and rtn)"),
      command.add_flag("--asym", flags.asym, "grids with zero points (the default of awq)"),
      add_switch(command, "--zero_point,--zero-point", flags.zero_point, "as --asym; false: as --sym"),
      add_switch(command, "--desc_act,--desc-act", flags.desc_act,
                 "GPTQ: groups of columns by falling importance (writes g_idx)"),
      command.add_option("--rounding", flags.rounding, "AWQ: codes by rounding to nearest or by GPTQ")
          ->check(CLI::IsMember({"nearest", "gptq"}))
          ->capture_default_str()};
}

void register_error_flags(CLI::App& command, QuantizeFlags& flags) {
  command
      .add_option(
          "--drift-correction,--gptaq", flags.drift_correction,
          "GPTQ, AWQ: part of the error of the layers before that a linear makes up for, 0 … 1 [0.5 for GPTQ at "
          "4 bits with 32768 tokens or more, else 0]")
      ->type_name("PART");
  command
      .add_option("--quality", flags.quality,
                  "best: --guided for GPTQ (4 bits: drift correction) and SqueezeLLM, --rounding gptq for AWQ")
      ->check(CLI::IsMember({"standard", "best"}))
      ->capture_default_str();
  command.add_flag("--guided", flags.guided,
                   "GPTQ, SqueezeLLM: errors weighted by what they do to the end loss, then coordinate descent");
  command
      .add_option("--damp-percent", flags.pipeline.method_options.damp_percent,
                  "GPTQ and --guided: part of the mean diagonal that is added to the Hessian")
      ->capture_default_str();
  command.add_option("--labels", flags.labels, "of the end loss: drawn from the model, or the text's next tokens")
      ->check(CLI::IsMember({"sampled", "text"}))
      ->capture_default_str();
  command
      .add_option("--statistics", flags.pipeline.statistics,
                  "keep the end loss's statistics in this folder, or take those that another run kept there, at "
                  "whatever bits")
      ->type_name("DIR");
  command.add_option("--fisher", flags.fisher, "what the Fisher diagonal squares: each token's gradient or a sample's")
      ->check(CLI::IsMember({"token", "sequence"}))
      ->capture_default_str();
}

void register_fp8_flags(CLI::App& command, QuantizeFlags& flags) {
  flags.fp8_only = {
      command.add_option("--weight-strategy", flags.weight_strategy, "FP8: what shares a scale; block: 128 x 128")
          ->check(CLI::IsMember({"tensor", "channel", "block"}))
          ->capture_default_str(),
      command
          .add_option("--activation-scheme", flags.activation_scheme,
                      "FP8: activation scales found while serving, or fixed by calibration")
          ->check(CLI::IsMember({"dynamic", "static"}))
          ->capture_default_str(),
      command
          .add_option("--range-percentile", flags.pipeline.method_options.fp8.percentile,
                      "FP8: part of the calibration values that fixed scales span; the rest is clipped")
          ->capture_default_str(),
      command.add_flag("--kv-cache-scales", flags.kv_cache_scales,
                       "FP8: also calibrate scales of keys and values, for --kv-cache-dtype fp8")};
}

/// "0.45%" as 0.0045. A bare number could mean either, so only 0 goes without the sign.
std::string parse_share(const std::string& text, double& share) {
  char* end = nullptr;
  share = std::strtod(text.c_str(), &end) / 100;
  const std::string_view rest(end);
  if (end != text.c_str() && (rest == "%" || (rest.empty() && share == 0))) return {};
  return fmt::format("'{}' is no percentage; write it as in 0.45%", text);
}

void register_codebook_flags(CLI::App& command, QuantizeFlags& flags) {
  double& sparsity = flags.pipeline.method_options.squeezellm.sparsity;
  flags.codebook_only = {
      command
          .add_option_function<std::string>(
              "--sparsity",
              [&sparsity](const std::string& text) {
                if (const std::string fault = parse_share(text, sparsity); !fault.empty()) {
                  throw CLI::ValidationError("--sparsity", fault);
                }
              },
              "SqueezeLLM: part of the weights that is stored apart, exact; 0: none")
          ->type_name("PERCENT%")
          ->default_str("0.45%"),
      command
          .add_option("--sensitivity", flags.sensitivity,
                      "SqueezeLLM: what weighs errors: the end loss's Fisher information, or the layer's own error")
          ->check(CLI::IsMember({"fisher", "hessian"}))
          ->capture_default_str()};
}

}  // namespace

std::function<int()> add_quantize(CLI::App& command) {
  const auto options = add_quantize_flags(command);
  const auto judge = add_judge_flags(command);
  command.footer("Exit codes: 0 done, 1 error, 2 usage, 3 rejected by --max-kl.");
  return [options, judge] { return run_quantize(options(), judge()); };
}

std::function<quantize::PipelineOptions()> add_quantize_flags(CLI::App& command) {
  auto flags = std::make_shared<QuantizeFlags>();
  quantize::PipelineOptions& pipeline = flags->pipeline;
  command.add_option("MODEL", flags->model, "folder, GGUF file or Hub name")->type_name("");
  command.add_option("--model", flags->model_option, "the same, as a flag")->type_name("MODEL");
  command.add_option("--method", flags->method, methods_text())->required()->type_name("METHOD");
  command
      .add_option("--format", pipeline.format,
                  "autoawq, gptq, gptq_v2, compressed-tensors, squeezellm or fp8 [by method]")
      ->type_name("FORMAT");
  command.add_option("--output,-o", pipeline.output, "folder to write")
      ->check(not_empty())
      ->required()
      ->type_name("DIR");
  register_integer_flags(command, *flags);
  register_error_flags(command, *flags);
  register_fp8_flags(command, *flags);
  register_codebook_flags(command, *flags);
  command
      .add_option("--calibration", flags->calibration,
                  "text or JSON lines, several files by repeating it; self: the model writes its own [self]")
      ->type_name("FILE|self")
      ->allow_extra_args(false);
  command.add_option("--samples", pipeline.calibration.num_samples, "calibration samples")->capture_default_str();
  command.add_option("--seq-len", pipeline.calibration.seq_len, "tokens a sample")->capture_default_str();
  command.add_option("--seed", pipeline.calibration.seed, "which samples are drawn")->capture_default_str();
  command.add_option("--device", pipeline.device, "where attention of the calibration passes runs")
      ->check(CLI::IsMember({"auto", "cpu", "reference"}))
      ->capture_default_str();
  command
      .add_option("--skip-layers,--modules_to_not_convert,--modules-to-not-convert", pipeline.skip_layers,
                  "linears that stay float: a part of their names, * for anything; may be repeated")
      ->type_name("PATTERN")
      ->allow_extra_args(false);
  command
      .add_option("--layer", flags->layers,
                  "linears with a scheme of their own, as '*.down_proj=8bit,group=32'; may be repeated")
      ->type_name("PATTERN=SETTING")
      ->allow_extra_args(false);
  command
      .add_option("--max-memory", pipeline.max_memory,
                  "as 24GB; calibration activations beyond it go to a scratch file in the output [what is free]")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("SIZE");
  command.add_flag_callback(
      "--resume", [flags] { flags->pipeline.resume = quantize::Resume::Yes; },
      "go on where a stopped run with the same flags left off, or begin");
  command.add_option("--threads", pipeline.num_threads, "CPU threads; 0: all")->check(between(0, kMaxThreads));
  command.callback([flags] { settle(*flags); });
  return [flags, &command] {
    quantize::PipelineOptions options = pipeline_options(*flags);
    options.arguments = recorded_arguments(command);
    return options;
  };
}

}  // namespace nibble::apps
