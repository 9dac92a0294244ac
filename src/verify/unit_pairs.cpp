#include "verify/unit_pairs.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "verify/interleaving.h"

namespace nibble::verify {
namespace {

using models::FoldProducer;
using models::Prepare;

/// Blocks of eight units that are compared; cosines of 512 units leave no doubt.
constexpr std::int64_t kMaxBlocks = 64;
/// Healthy pairs gain nothing from another order. A wrong one leaves two of eight units in place, so the right one
/// lines up about four times better.
constexpr double kMinGain = 1.8;
constexpr double kMinAlignment = 4;

/// Whole blocks of eight out of `count` units, spread evenly.
std::vector<std::int64_t> choose_units(std::int64_t count) {
  const std::int64_t blocks = count / kInterleaved;
  const std::int64_t step = std::max<std::int64_t>(1, blocks / kMaxBlocks);
  std::vector<std::int64_t> units;
  for (std::int64_t block = 0; block < blocks; block += step) {
    for (std::int64_t i = 0; i < kInterleaved; ++i) units.push_back(block * kInterleaved + i);
  }
  return units;
}

/// Rows of k or v that the query heads' units belong to.
std::vector<std::int64_t> kv_units(const std::vector<std::int64_t>& units, const backend::AttentionSpec& attention) {
  const std::int64_t heads_per_kv = attention.num_heads / attention.num_kv_heads;
  std::vector<std::int64_t> mapped;
  for (const std::int64_t unit : units) {
    const std::int64_t head = unit / attention.head_dim;
    mapped.push_back(head / heads_per_kv * attention.head_dim + unit % attention.head_dim);
  }
  return mapped;
}

void add_pair(PairPlan& plan, const std::string& producer, const std::string& consumer, std::int64_t num_units,
              const backend::AttentionSpec* attention) {
  const std::vector<std::int64_t> units = choose_units(num_units);
  plan.pairs.push_back({producer, consumer, false});
  plan.choices[producer].rows = attention != nullptr ? kv_units(units, *attention) : units;
  plan.choices[consumer].columns = units;
}

std::size_t index_of(Prepare prepare, const models::BlockSpec& spec) {
  const auto found = std::ranges::find(spec.stages, prepare, &models::Stage::prepare);
  return static_cast<std::size_t>(found - spec.stages.begin());
}

struct Side {
  std::string module;
  UnitVectors stored;
  std::vector<float> other;  // in the other order
  UnitVectors view() const { return {other, stored.width}; }
};

/// Packing along outputs interleaves the rows of a linear: its own units where they are rows, else the space they
/// live in.
Side make_side(const models::BlockSpec& spec, const std::string& relative, bool by_rows, const ModuleStats& stats,
               Packing packing) {
  const Shape shape = models::linear_shape(spec, relative);
  Side side{spec.module_name(relative), {by_rows ? stats.rows : stats.columns, by_rows ? shape[1] : shape[0]}, {}};
  const bool packs_rows = packing == Packing::AlongOutputsAsAwq;
  const auto along = packs_rows == by_rows ? InterleavedAlong::Units : InterleavedAlong::Width;
  const auto reading = packs_rows ? Reading::PlainAsAwq : Reading::AwqAsPlain;
  side.other = reordered(side.stored, along, reading);
  return side;
}

void check_pair(const Side& first, const Side& second, const std::string& suffix, Packing packing,
                std::set<std::string>& named, std::vector<Finding>& findings) {
  const double stored = alignment(first.stored, second.stored);
  struct Reading {
    double alignment;
    bool first_differs;
    bool second_differs;
  };
  const Reading readings[] = {{alignment(first.view(), second.stored), true, false},
                              {alignment(first.stored, second.view()), false, true},
                              {alignment(first.view(), second.view()), true, true}};
  const Reading best = *std::ranges::max_element(readings, {}, &Reading::alignment);
  if (best.alignment < kMinAlignment || best.alignment < kMinGain * stored) return;
  const auto report = [&](const Side& side, const Side& partner) {
    if (!named.insert(side.module).second) return;
    findings.push_back(
        {fmt::format("{}.{}", side.module, suffix),
         fmt::format("its codes stand in {} order: with that order its units line up with those of {} {:.0f} times "
                     "better than chance, as the format has it {:.1f} times",
                     packing == Packing::AlongOutputsAsAwq ? "plain (GPTQ's)" : "AWQ's", partner.module, best.alignment,
                     stored)});
  };
  if (best.first_differs) report(first, second);
  if (best.second_differs) report(second, first);
}

}  // namespace

PairPlan plan_pairs(const models::BlockSpec& spec) {
  PairPlan plan;
  if (spec.attention.head_dim % kInterleaved != 0 || spec.hidden_size % kInterleaved != 0) return plan;
  for (const models::Stage& stage : spec.stages) {
    if (stage.linears.empty()) continue;
    const std::int64_t num_units = models::linear_shape(spec, stage.linears.front())[1];
    const FoldProducer& producer = stage.fold_producer;
    if (producer.kind == FoldProducer::Kind::Linear) {
      add_pair(plan, producer.module, stage.linears.front(), num_units, nullptr);
    } else if (producer.kind == FoldProducer::Kind::LinearByHead) {
      add_pair(plan, producer.module, stage.linears.front(), num_units, &spec.attention);
    }
  }
  const std::size_t mlp = index_of(Prepare::PostAttentionNorm, spec);
  const std::size_t down = index_of(Prepare::SiluMul, spec);
  if (mlp < spec.stages.size() && down < spec.stages.size() && spec.stages[mlp].linears.size() == 2) {
    add_pair(plan, spec.stages[mlp].linears.front(), spec.stages[down].linears.front(), spec.intermediate_size,
             nullptr);
  }
  const std::size_t attention = index_of(Prepare::InputNorm, spec);
  if (attention < spec.stages.size() && spec.stages[attention].linears.size() == 3) {
    const std::string& q = spec.stages[attention].linears[0];
    const std::string& k = spec.stages[attention].linears[1];
    plan.choices[q].rows = choose_units(spec.attention.num_heads * spec.attention.head_dim);
    plan.choices[k].rows = kv_units(plan.choices[q].rows, spec.attention);
    plan.pairs.push_back({q, k, true});
  }
  return plan;
}

std::vector<Finding> check_interleaving(const models::BlockSpec& spec, const PairPlan& plan,
                                        const std::map<std::string, ModuleStats>& stats, Packing packing,
                                        const std::string& suffix) {
  std::vector<Finding> findings;
  if (packing == Packing::Other) return findings;
  std::set<std::string> named;
  for (const UnitPair& pair : plan.pairs) {
    const auto first = stats.find(pair.first);
    const auto second = stats.find(pair.second);
    if (first == stats.end() || second == stats.end()) continue;
    const auto is_four_bit = [](const ModuleStats& found) { return found.grid && found.grid->bits == 4; };
    if (!is_four_bit(first->second) || !is_four_bit(second->second)) continue;
    check_pair(make_side(spec, pair.first, true, first->second, packing),
               make_side(spec, pair.second, pair.second_by_rows, second->second, packing), suffix, packing, named,
               findings);
  }
  return findings;
}

}  // namespace nibble::verify
