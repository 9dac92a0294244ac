#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/block.h"
#include "verify/finding.h"
#include "verify/module_stats.h"

namespace nibble::verify {

/// How large the linears are from layer to layer. Trained layers change slowly; a linear of twice the size of its
/// neighbours on both sides has wrong scales. Sizes are taken so that folding (AWQ's norm → q, up → down, v → o) does
/// not change them: norms belong to the linear that reads them, and two linears of a fold count together.
class LayerScales {
 public:
  /// Layers come in order; a linear that could not be read is left out.
  void add(const models::BlockSpec& spec, const std::map<std::string, ModuleStats>& stats);

  /// `suffix` names the tensor: "scales".
  std::vector<Finding> check(const std::string& suffix) const;

 private:
  struct Entry {
    std::vector<std::string> modules;  // one linear, or the two of a fold
    std::vector<double> log2_sizes;    // each one's own
    double log2_size = 0;              // of them together
  };
  using Series = std::map<std::int64_t, Entry>;  // by layer

  std::map<std::string, Series> series_;  // by relative name
  std::int64_t num_layers_ = 0;
};

}  // namespace nibble::verify
