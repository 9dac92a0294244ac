#include "verify/channel_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "verify/interleaving.h"

namespace nibble::verify {
namespace {

using models::Prepare;

/// Blocks of eight channels that are compared.
constexpr std::int64_t kMaxBlocks = 32;
/// A verdict needs the other order to fit so much better than the stored one (healthy linears of SmolLM2: at most 0.6
/// times as well, wrong ones at least 2.3 times), and so far beyond chance.
constexpr double kMinGain = 1.5;
constexpr double kMinDeviations = 4.5;

std::vector<std::int64_t> choose_channels(std::int64_t count) {
  const std::int64_t blocks = count / kInterleaved;
  const std::int64_t chosen = std::min(blocks, kMaxBlocks);
  std::vector<std::int64_t> channels;
  for (std::int64_t i = 0; i < chosen; ++i) {
    const std::int64_t block = i * blocks / chosen;
    for (std::int64_t j = 0; j < kInterleaved; ++j) channels.push_back(block * kInterleaved + j);
  }
  return channels;
}

const models::Stage* find_stage(const models::BlockSpec& spec, Prepare prepare) {
  const auto found = std::ranges::find(spec.stages, prepare, &models::Stage::prepare);
  return found != spec.stages.end() ? &*found : nullptr;
}

/// v, gate and up, which read the stream, and o, which writes it.
std::vector<ChannelCorrelations> find_references(const models::BlockSpec& spec,
                                                 const std::map<std::string, ModuleStats>& stats,
                                                 const std::set<std::string>& named,
                                                 std::span<const std::int64_t> channels) {
  std::vector<ChannelCorrelations> references;
  const auto add = [&](const std::string& relative, Prepare prepare) {
    const auto found = stats.find(relative);
    if (found == stats.end() || named.contains(spec.module_name(relative))) return;
    const std::vector<float>& vectors = prepare == Prepare::Attention ? found->second.columns : found->second.rows;
    if (!vectors.empty()) references.push_back(ChannelCorrelations({vectors, spec.hidden_size}, channels));
  };
  for (const Prepare prepare : {Prepare::InputNorm, Prepare::Attention, Prepare::PostAttentionNorm}) {
    const models::Stage* stage = find_stage(spec, prepare);
    if (stage == nullptr) continue;
    const std::size_t first = prepare == Prepare::InputNorm ? 2 : 0;  // after q and k
    for (std::size_t l = first; l < stage->linears.size(); ++l) add(stage->linears[l], prepare);
  }
  return references;
}

enum class Order : std::uint8_t { Stored, Other };

/// Root of the summed squares of the similarities to the references.
double fit(const ChannelCorrelations& own, const std::vector<ChannelCorrelations>& references, std::size_t num_channels,
           Order order) {
  std::vector<std::int32_t> places(num_channels);
  for (std::size_t i = 0; i < num_channels; ++i) {
    // A code read at place i belongs to to_awq_order(i), hence channel c was read at from_awq_order(c).
    const auto channel = static_cast<std::int64_t>(i);
    places[i] = static_cast<std::int32_t>(order == Order::Stored ? channel : from_awq_order(channel));
  }
  double sum = 0;
  for (const ChannelCorrelations& reference : references) {
    const double similarity = own.similarity(reference, places);
    sum += similarity * similarity;
  }
  return std::sqrt(sum);
}

}  // namespace

ChannelCorrelations::ChannelCorrelations(const UnitVectors& vectors, std::span<const std::int64_t> channels)
    : num_channels_(channels.size()), values_(num_channels_ * num_channels_) {
  const std::size_t n = num_channels_;
  std::vector<float> row(n);
  for (std::int64_t unit = 0; unit < vectors.num_units(); ++unit) {
    const float* from = vectors.values.data() + unit * vectors.width;
    for (std::size_t i = 0; i < n; ++i) row[i] = from[channels[i]];
    for (std::size_t i = 0; i < n; ++i) {
      float* to = values_.data() + i * n;
      for (std::size_t j = 0; j < n; ++j) to[j] += row[i] * row[j];
    }
  }
  std::vector<float> norms(n);
  for (std::size_t i = 0; i < n; ++i) norms[i] = std::sqrt(std::max(values_[i * n + i], 1e-30f));
  double squares = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      float& value = values_[i * n + j];
      value = i == j ? 0 : value / (norms[i] * norms[j]);
      squares += static_cast<double>(value) * value;
    }
  }
  const auto scale = static_cast<float>(squares > 0 ? 1 / std::sqrt(squares) : 0);
  for (float& value : values_) value *= scale;
}

double ChannelCorrelations::similarity(const ChannelCorrelations& other, std::span<const std::int32_t> order) const {
  check(num_channels_ == other.num_channels_ && order.size() == num_channels_, "verify: channels differ in number");
  const std::size_t n = num_channels_;
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float* from = values_.data() + static_cast<std::size_t>(order[i]) * n;
    for (std::size_t j = 0; j < n; ++j) {
      sum += static_cast<double>(from[static_cast<std::size_t>(order[j])]) * other.values_[i * n + j];
    }
  }
  return sum;
}

std::vector<Finding> check_query_key_channels(const models::BlockSpec& spec,
                                              const std::map<std::string, ModuleStats>& stats, Packing packing,
                                              const std::string& suffix, const std::set<std::string>& named) {
  std::vector<Finding> findings;
  const models::Stage* attention = find_stage(spec, Prepare::InputNorm);
  if (packing != Packing::AlongInputs || attention == nullptr || attention->linears.size() != 3) return findings;
  if (spec.hidden_size % kInterleaved != 0) return findings;
  const std::vector<std::int64_t> channels = choose_channels(spec.hidden_size);
  const std::vector<ChannelCorrelations> references = find_references(spec, stats, named, channels);
  if (references.empty()) return findings;
  // The cosine of two random matrices of n * n / 2 numbers has a standard deviation of sqrt(2) / n.
  const double chance = std::sqrt(2.0) / static_cast<double>(channels.size());

  for (const std::string& relative : {attention->linears[0], attention->linears[1]}) {
    const auto found = stats.find(relative);
    if (found == stats.end() || !found->second.grid || found->second.grid->bits != 4) continue;
    const ChannelCorrelations own({found->second.rows, spec.hidden_size}, channels);
    const double stored = fit(own, references, channels.size(), Order::Stored);
    const double other = fit(own, references, channels.size(), Order::Other);
    if (other < kMinGain * stored || other < kMinDeviations * chance) continue;
    findings.push_back(
        {fmt::format("{}.{}", spec.module_name(relative), suffix),
         fmt::format("its codes stand in AWQ's order: with that order it reads the channels of the residual stream as "
                     "the linears beside it do, {:.1f} times better than as the format has it",
                     other / std::max(stored, 1e-6))});
  }
  return findings;
}

}  // namespace nibble::verify
