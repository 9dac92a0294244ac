#include "verify/layer_scales.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>

namespace nibble::verify {
namespace {

using models::FoldProducer;

/// Bits of size (log2) that a linear may lie off the median of its four neighbours; doubling is 1. SmolLM2's inner
/// layers stay below 0.3.
constexpr double kMaxDeviation = 0.75;
/// Neighbours that differ more among themselves say nothing.
constexpr double kMaxSpread = 0.6;

/// log2 of Σ |row r of the producer| · |column of the consumer|: the same whatever was folded from one into the other.
double log2_pair_size(const ModuleStats& producer, const ModuleStats& consumer,
                      const backend::AttentionSpec* attention) {
  double sum = 0;
  for (std::size_t column = 0; column < consumer.column_energies.size(); ++column) {
    auto row = static_cast<std::int64_t>(column);
    if (attention != nullptr) {
      const std::int64_t heads_per_kv = attention->num_heads / attention->num_kv_heads;
      row = row / attention->head_dim / heads_per_kv * attention->head_dim + row % attention->head_dim;
    }
    sum += std::sqrt(static_cast<double>(producer.row_energies[static_cast<std::size_t>(row)]) *
                     consumer.column_energies[column]);
  }
  return std::log2(std::max(sum, 1e-60));
}

std::optional<double> deviation(const std::array<double, 4>& neighbours, double size) {
  std::array<double, 4> sorted = neighbours;
  std::ranges::sort(sorted);
  if (sorted[3] - sorted[0] > kMaxSpread) return std::nullopt;
  return size - 0.5 * (sorted[1] + sorted[2]);
}

}  // namespace

void LayerScales::add(const models::BlockSpec& spec, const std::map<std::string, ModuleStats>& stats) {
  const std::int64_t layer = num_layers_++;
  std::set<std::string> folded;
  for (const models::Stage& stage : spec.stages) {
    const FoldProducer& fold = stage.fold_producer;
    if (fold.kind != FoldProducer::Kind::Linear && fold.kind != FoldProducer::Kind::LinearByHead) continue;
    const auto producer = stats.find(fold.module);
    const auto consumer = stats.find(stage.linears.front());
    folded.insert({fold.module, stage.linears.front()});
    if (producer == stats.end() || consumer == stats.end()) continue;
    const bool by_head = fold.kind == FoldProducer::Kind::LinearByHead;
    Entry& entry = series_[fold.module][layer];
    entry.modules = {spec.module_name(fold.module), spec.module_name(stage.linears.front())};
    entry.log2_sizes = {producer->second.log2_rms, consumer->second.log2_rms};
    entry.log2_size = log2_pair_size(producer->second, consumer->second, by_head ? &spec.attention : nullptr);
  }
  for (const auto& [relative, found] : stats) {
    if (folded.contains(relative)) continue;
    series_[relative][layer] = {{spec.module_name(relative)}, {found.log2_rms}, found.log2_rms};
  }
}

std::map<std::string, OuterSize> LayerScales::outer_sizes(std::int64_t num_outer) const {
  std::map<std::string, OuterSize> sizes;
  if (num_layers_ < 2 * num_outer + 4) return sizes;
  for (const auto& [relative, series] : series_) {
    for (const auto& [layer, entry] : series) {
      const bool is_first = layer < num_outer;
      if (!is_first && layer < num_layers_ - num_outer) continue;
      const std::int64_t first_inner = is_first ? num_outer : num_layers_ - num_outer - 4;
      std::array<const Entry*, 4> inner{};
      for (std::size_t i = 0; i < 4; ++i) {
        const auto found = series.find(first_inner + static_cast<std::int64_t>(i));
        if (found != series.end()) inner[i] = &found->second;
      }
      if (std::ranges::find(inner, nullptr) != inner.end()) continue;
      const auto of = [&](auto&& size_of) {
        return deviation({size_of(*inner[0]), size_of(*inner[1]), size_of(*inner[2]), size_of(*inner[3])},
                         size_of(entry));
      };
      const auto together = of([](const Entry& e) { return e.log2_size; });
      for (std::size_t i = 0; i < entry.modules.size(); ++i) {
        sizes[entry.modules[i]] = {of([&](const Entry& e) { return e.log2_sizes[i]; }), together};
      }
    }
  }
  return sizes;
}

std::vector<Finding> LayerScales::check(const std::string& suffix) const {
  std::vector<Finding> findings;
  for (const auto& [relative, series] : series_) {
    for (const auto& [layer, entry] : series) {
      std::array<const Entry*, 4> neighbours{};
      for (std::size_t i = 0; i < 4; ++i) {
        const auto found = series.find(layer + std::array<std::int64_t, 4>{-2, -1, 1, 2}[i]);
        if (found != series.end()) neighbours[i] = &found->second;
      }
      if (std::ranges::find(neighbours, nullptr) != neighbours.end()) continue;
      const auto of = [&](auto&& size_of) {
        return deviation(
            {size_of(*neighbours[0]), size_of(*neighbours[1]), size_of(*neighbours[2]), size_of(*neighbours[3])},
            size_of(entry));
      };
      const auto together = of([](const Entry& e) { return e.log2_size; });
      if (!together || std::abs(*together) < kMaxDeviation) continue;
      // Of two, the one whose own size is off by as much.
      std::size_t culprit = 0;
      double smallest = 1e9;
      for (std::size_t i = 0; i < entry.modules.size(); ++i) {
        const double own = of([&](const Entry& e) { return e.log2_sizes[i]; }).value_or(0);
        if (std::abs(own - *together) < smallest) {
          smallest = std::abs(own - *together);
          culprit = i;
        }
      }
      findings.push_back({fmt::format("{}.{}", entry.modules[culprit], suffix),
                          fmt::format("its weights are {:.2f} times as large as those of the layers before and after",
                                      std::exp2(*together))});
    }
  }
  return findings;
}

}  // namespace nibble::verify
