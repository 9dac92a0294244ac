#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "models/block.h"
#include "verify/finding.h"
#include "verify/interleaving.h"
#include "verify/module_stats.h"
#include "verify/unit_pairs.h"

namespace nibble::verify {

/// How alike two linears use the channels that they share: cosine of the off-diagonal parts of the correlation matrices
/// of their columns, 0 for unrelated ones. `a` and `b` hold vectors in the space of those channels. In trained models
/// what reads the residual stream and what writes it have directions in common; other orders of the channels lose them.
class ChannelCorrelations {
 public:
  /// Of `width` channels of the vectors [num_vectors, width], those in `channels`.
  ChannelCorrelations(const UnitVectors& vectors, std::span<const std::int64_t> channels);

  /// Channel i of `order` (places in `channels`) stands for channel i.
  double similarity(const ChannelCorrelations& other, std::span<const std::int32_t> order) const;

 private:
  std::size_t num_channels_;
  std::vector<float> values_;  // [num_channels, num_channels], zero diagonal, norm 1
};

/// q and k whose codes along the inputs are interleaved in AWQ's order, each on its own: the two line up with each
/// other where both are wrong, but not with what else reads and writes the residual stream. `named` are linears with a
/// finding, which are no measure.
std::vector<Finding> check_query_key_channels(const models::BlockSpec& spec,
                                              const std::map<std::string, ModuleStats>& stats, Packing packing,
                                              const std::string& suffix, const std::set<std::string>& named);

}  // namespace nibble::verify
