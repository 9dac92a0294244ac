#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/block.h"
#include "verify/finding.h"
#include "verify/module_stats.h"

namespace nibble::verify {

/// Two linears of a block whose units correspond: output r of `first` feeds, or stands beside, unit r of `second`.
struct UnitPair {
  std::string first;   // relative name; its rows are the units
  std::string second;  // its columns are (up → down, v → o, gate → down), or its rows (q beside k)
  bool second_by_rows = false;
};

/// The pairs of a block and which units of each linear take part in them.
struct PairPlan {
  std::vector<UnitPair> pairs;
  std::map<std::string, UnitChoice> choices;  // by relative name
};

PairPlan plan_pairs(const models::BlockSpec& spec);

/// How the 4-bit codes of the checkpoint's quantized linears are packed.
enum class Packing : std::uint8_t { AlongInputs, AlongOutputsAsAwq, Other };

/// Linears whose codes must have been packed in another order than the format's: with that order the units of a pair
/// line up, as stored they do not. `stats` by relative name; `suffix` names the tensor: "qweight".
std::vector<Finding> check_interleaving(const models::BlockSpec& spec, const PairPlan& plan,
                                        const std::map<std::string, ModuleStats>& stats, Packing packing,
                                        const std::string& suffix);

}  // namespace nibble::verify
