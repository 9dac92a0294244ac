#include "verify/text_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "models/block.h"
#include "tokenizer/tokenizer.h"
#include "verify/sample_text.h"
#include "verify/text_pass.h"

namespace nibble::verify {
namespace {

using models::FoldProducer;
using models::Prepare;

constexpr std::size_t kMaxTokens = 256;
constexpr std::size_t kMinTokens = 64;
/// Layers at each end that have no neighbours on both sides.
constexpr std::int64_t kOuterLayers = 2;

/// The part of a uniform guess's loss that a reading may have at most: a model that cannot read the text says nothing
/// about its own linears. SmolLM2 has 0.20 in f16, 0.24 in 4 bits, 0.4 and more in 3 bits rounded to nearest.
constexpr double kMaxLossPart = 0.45;
/// What a reading must save where nothing but the loss speaks for it. Healthy files save up to 0.1 nats and 4.3
/// standard errors, in linears that 3 bits have made noisy; doubled scales cost 0.2 to 4 nats where they matter.
constexpr double kMinGain = 0.25;
constexpr double kMinDeviations = 5;
/// With a size that is off by about the reading's factor, less will do. First layers of trained models differ from the
/// next ones anyway, so there the loss must speak for the reading; last layers do not (0.3 bits in SmolLM2), so there
/// it must only not speak against it.
constexpr double kMinSizeDeviation = 0.75;
constexpr double kMinDeviationsOfFirst = 2.5;
constexpr double kMinDeviationsOfLast = -2;
/// Of two linears whose product is off, the one whose own size explains it so much better, in bits.
constexpr double kCulpritMargin = 0.5;

/// A linear whose scales are in question, and the one that the loss cannot tell from it: k beside q, o after v, down
/// after up.
struct Suspect {
  std::int64_t layer = 0;
  std::string module;
  std::string partner;  // or empty
};

/// A reading and what it is about.
struct Hypothesis {
  TextReading reading;
  Suspect suspect;
};

/// Loss of a text as stored and in one reading, in nats a token.
struct Comparison {
  double stored = 0;
  double reading = 0;
  double deviations = 0;  // what the reading saves, in standard errors of its mean

  double gain() const { return stored - reading; }
};

double mean_of(std::span<const float> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

Comparison compare(std::span<const float> stored, std::span<const float> reading) {
  Comparison result{mean_of(stored), mean_of(reading), 0};
  double squares = 0;
  for (std::size_t t = 0; t < stored.size(); ++t) {
    const double off = static_cast<double>(stored[t]) - reading[t] - result.gain();
    squares += off * off;
  }
  const auto count = static_cast<double>(stored.size());
  result.deviations = result.gain() / std::max(std::sqrt(squares) / count, 1e-9);
  return result;
}

std::string partner_of(const models::BlockSpec& spec, const std::string& relative) {
  for (const models::Stage& stage : spec.stages) {
    const FoldProducer::Kind kind = stage.fold_producer.kind;
    const bool is_fold = kind == FoldProducer::Kind::Linear || kind == FoldProducer::Kind::LinearByHead;
    if (is_fold && stage.fold_producer.module == relative) return spec.module_name(stage.linears.front());
    if (stage.prepare == Prepare::InputNorm && stage.linears.size() == 3 && stage.linears[0] == relative) {
      return spec.module_name(stage.linears[1]);
    }
  }
  return {};
}

/// Linears of a block at half and at twice their scales; of two that the loss cannot tell apart, the first.
void add_scale_readings(const formats::Checkpoint& checkpoint, const models::BlockSpec& spec, std::int64_t layer,
                        std::vector<Hypothesis>& hypotheses) {
  std::vector<std::string> partners;
  for (std::size_t s = 0; s < spec.stages.size(); ++s) {
    std::int64_t first = 0;
    for (const std::string& relative : spec.stages[s].linears) {
      const std::string module = spec.module_name(relative);
      const std::int64_t width = models::linear_shape(spec, relative)[0];
      const std::int64_t first_output = first;
      first += width;
      if (std::ranges::find(partners, module) != partners.end()) continue;
      const std::string partner = partner_of(spec, relative);
      partners.push_back(partner);
      TextReading reading{.layer = layer, .stage_idx = s, .first_output = first_output, .num_outputs = width};
      const Tensor bias = checkpoint.bias(module, width);
      if (!bias.is_empty()) reading.bias.assign(bias.span<float>().begin(), bias.span<float>().end());
      for (const float factor : {0.5f, 2.0f}) {
        reading.factor = factor;
        hypotheses.push_back({reading, {layer, module, partner}});
      }
    }
  }
}

/// Which rows of a head rotate together, in the file.
enum class RotaryPairs : std::uint8_t { Halves, Adjacent };

/// q and k of every layer with the members of a rotary pair elsewhere: (j, j + d/2) is what Hugging Face's files have,
/// (2j, 2j + 1) what Meta's have. Conversions that forget to reorder, or do so twice, leave q and k aligned.
TextReading make_rotary_reading(const models::ModelConfig& config, RotaryPairs stored) {
  const std::int64_t d = config.head_dim;
  const std::int64_t num_outputs = (config.num_attention_heads + config.num_key_value_heads) * d;
  TextReading reading{.layer = TextReading::kEveryLayer, .num_outputs = num_outputs};
  reading.order.resize(static_cast<std::size_t>(num_outputs));
  for (std::int64_t output = 0; output < num_outputs; ++output) {
    const std::int64_t head = output / d * d;
    const std::int64_t i = output % d;
    const std::int64_t from = stored == RotaryPairs::Adjacent ? i % (d / 2) * 2 + i / (d / 2) : i % 2 * (d / 2) + i / 2;
    reading.order[static_cast<std::size_t>(output)] = static_cast<std::int32_t>(head + from);
  }
  return reading;
}

class TextCheck {
 public:
  TextCheck(const formats::Checkpoint& checkpoint, const models::ModelConfig& config, const TextCheckOptions& options)
      : checkpoint_(checkpoint),
        config_(config),
        options_(options),
        architecture_(models::find_architecture(config.architecture)),
        sizes_(options.sizes.outer_sizes(kOuterLayers)) {}

  TextCheckResult run() {
    const std::vector<std::int32_t> tokens = read_tokens();
    if (!result_.skipped.empty()) return std::move(result_);
    std::vector<Hypothesis> hypotheses;
    for (std::int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
      if (is_first(layer) || is_last(layer)) {
        add_scale_readings(checkpoint_, architecture_.block(config_, layer), layer, hypotheses);
      }
    }
    std::vector<TextReading> readings;
    for (const Hypothesis& hypothesis : hypotheses) readings.push_back(hypothesis.reading);
    for (const auto pairs : {RotaryPairs::Adjacent, RotaryPairs::Halves}) {
      readings.push_back(make_rotary_reading(config_, pairs));
    }

    const auto backend = backend::make_backend("cpu", {.num_threads = options_.num_threads});
    const TextLosses losses = TextPass(checkpoint_, config_, *backend, tokens).run(readings, options_.on_block);
    judge_outputs(losses.largest_outputs);
    const double stored = mean_of(losses.stored);
    if (!std::isfinite(stored)) return std::move(result_);
    result_.num_tokens = static_cast<std::int64_t>(tokens.size());
    result_.loss = stored;
    for (std::size_t h = 0; h < hypotheses.size(); ++h) {
      judge_scale(hypotheses[h], compare(losses.stored, losses.readings[h]));
    }
    for (std::size_t r = hypotheses.size(); r < readings.size(); ++r) {
      judge_rotary(compare(losses.stored, losses.readings[r]));
    }
    if (likeliest_) result_.findings.push_back(std::move(likeliest_->first));
    return std::move(result_);
  }

 private:
  bool is_first(std::int64_t layer) const { return layer < kOuterLayers; }
  bool is_last(std::int64_t layer) const { return layer >= config_.num_hidden_layers - kOuterLayers; }

  /// The text's ids, or the reason why there are none.
  std::vector<std::int32_t> read_tokens() {
    const auto skip = [&](std::string reason) {
      result_.skipped = std::move(reason);
      return std::vector<std::int32_t>{};
    };
    const auto json = checkpoint_.side_file("tokenizer.json");
    if (!json) return skip("there is no tokenizer.json");
    std::vector<std::int32_t> tokens;
    try {
      tokens = tokenizer::Tokenizer::from_json(*json, tokenizer_config())->encode(kSampleText);
    } catch (const Error& error) {
      return skip(fmt::format("tokenizer.json: {}", error.what()));
    }
    tokens.resize(std::min({tokens.size(), kMaxTokens, static_cast<std::size_t>(config_.max_position_embeddings)}));
    if (tokens.size() < kMinTokens) return skip("the text has too few tokens for it");
    const auto largest = *std::ranges::max_element(tokens);
    if (largest >= config_.vocab_size) {
      return skip(
          fmt::format("tokenizer.json makes token {}, and the vocabulary ends at {}", largest, config_.vocab_size));
    }
    return tokens;
  }

  Json tokenizer_config() const {
    const auto text = checkpoint_.side_file("tokenizer_config.json");
    return text ? parse_json(*text, (checkpoint_.path() / "tokenizer_config.json").string()) : Json();
  }

  void judge_outputs(const std::vector<LargestOutput>& outputs) {
    constexpr float kLargestHalf = 65504;
    for (const LargestOutput& output : outputs) {
      if (std::isinf(output.value)) {
        add(output.module, options_.scale_suffix, "its outputs on a short text are not all finite");
        return;  // nothing after it is
      }
      if (config_.dtype == DType::F16 && output.value > kLargestHalf) {
        add(output.module, options_.scale_suffix,
            fmt::format("its outputs on a short text reach {:.3g}, which overflows f16 (65504)", output.value));
      }
    }
  }

  bool is_read(const Comparison& comparison) const {
    return comparison.reading <= kMaxLossPart * std::log(static_cast<double>(config_.vocab_size));
  }

  static bool is_decisive(const Comparison& comparison) {
    return comparison.gain() >= kMinGain && comparison.deviations >= kMinDeviations;
  }

  void judge_scale(const Hypothesis& hypothesis, const Comparison& comparison) {
    if (!is_read(comparison)) return;
    const Suspect& suspect = hypothesis.suspect;
    const double bits_off = -std::log2(hypothesis.reading.factor);
    const double needed = is_last(suspect.layer) ? kMinDeviationsOfLast : kMinDeviationsOfFirst;
    const bool is_off =
        std::max(part_off(suspect.module, bits_off), part_off(suspect.partner, bits_off)) >= kMinSizeDeviation;
    if (!is_decisive(comparison) && !(is_off && comparison.deviations >= needed)) return;

    std::string where = fmt::format("{}.{}", suspect.module, options_.scale_suffix);
    const std::string other = fmt::format("{}.{}", suspect.partner, options_.scale_suffix);
    if (!suspect.partner.empty()) {
      const double margin = culprit_margin(suspect, bits_off);
      if (margin < -kCulpritMargin) where = other;
      if (std::abs(margin) <= kCulpritMargin) where += " or " + other;
    }
    std::string problem = fmt::format(
        "its weights are {} as large as they should be: {} them, a short text has a loss "
        "of {:.2f} nats a token instead of {:.2f}",
        bits_off > 0 ? "twice" : "half", bits_off > 0 ? "halving" : "doubling", comparison.reading, comparison.stored);
    if (is_off) {
      problem += fmt::format("; beside the layers {} it they are {:.2f} times as large",
                             is_last(suspect.layer) ? "before" : "after", size_ratio(suspect, bits_off));
    }
    Finding finding{std::move(where), std::move(problem)};
    if (is_off && is_last(suspect.layer)) {
      result_.findings.push_back(std::move(finding));
    } else {
      keep_likeliest(std::move(finding), comparison);
    }
  }

  /// One fault lets other linears save something too: of what the loss speaks for, the reading that saves most.
  void keep_likeliest(Finding finding, const Comparison& comparison) {
    if (likeliest_ && likeliest_->second <= comparison.reading) return;
    likeliest_ = {std::move(finding), comparison.reading};
  }

  /// How far the size of `module` (with its fold's partner) is off in the direction of `bits_off`, in bits.
  double part_off(const std::string& module, double bits_off) const {
    const auto found = sizes_.find(module);
    return found != sizes_.end() && found->second.together ? *found->second.together * bits_off : 0;
  }

  /// By how many bits the fault explains the module's own size better than its partner's.
  double culprit_margin(const Suspect& suspect, double bits_off) const {
    const auto module = sizes_.find(suspect.module);
    const auto partner = sizes_.find(suspect.partner);
    if (module == sizes_.end() || partner == sizes_.end() || !module->second.own || !partner->second.own) return 0;
    return std::abs(*partner->second.own - bits_off) - std::abs(*module->second.own - bits_off);
  }

  double size_ratio(const Suspect& suspect, double bits_off) const {
    const double off = std::max(part_off(suspect.module, bits_off), part_off(suspect.partner, bits_off));
    return std::exp2(off * bits_off);
  }

  void judge_rotary(const Comparison& comparison) {
    if (!is_read(comparison) || !is_decisive(comparison)) return;
    const models::BlockSpec spec = architecture_.block(config_, 0);
    const std::string query = spec.module_name(spec.stages.front().linears.front());
    keep_likeliest(
        {fmt::format("{}.{}", query, options_.code_suffix),
         fmt::format("rows of q and k, here and in all layers, have their rotary pairs in another order "
                     "(adjacent rows, as in Meta's files, instead of half a head apart): in that order a short "
                     "text has a loss of {:.2f} nats a token instead of {:.2f}",
                     comparison.reading, comparison.stored)},
        comparison);
  }

  void add(const std::string& module, const std::string& suffix, std::string problem) {
    result_.findings.push_back({fmt::format("{}.{}", module, suffix), std::move(problem)});
  }

  const formats::Checkpoint& checkpoint_;
  const models::ModelConfig& config_;
  const TextCheckOptions& options_;
  const models::Architecture& architecture_;
  std::map<std::string, OuterSize> sizes_;               // by module
  std::optional<std::pair<Finding, double>> likeliest_;  // with the loss of its reading
  TextCheckResult result_;
};

}  // namespace

TextCheckResult check_text(const formats::Checkpoint& checkpoint, const models::ModelConfig& config,
                           const TextCheckOptions& options) {
  return TextCheck(checkpoint, config, options).run();
}

}  // namespace nibble::verify
