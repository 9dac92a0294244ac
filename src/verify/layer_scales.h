#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "models/block.h"
#include "verify/finding.h"
#include "verify/module_stats.h"

namespace nibble::verify {

/// Size of a linear of an outer layer, in bits (log2) off the median of the four nearest inner layers; nothing where
/// those differ too much among themselves.
struct OuterSize {
  std::optional<double> own;
  std::optional<double> together;  // with the other linear of its fold, else as `own`
};

/// How large the linears are from layer to layer. Trained layers change slowly; a linear of twice the size of its
/// neighbours on both sides has wrong scales. Sizes are taken so that folding (AWQ's norm → q, up → down, v → o) does
/// not change them: norms belong to the linear that reads them, and two linears of a fold count together.
class LayerScales {
 public:
  /// Layers come in order; a linear that could not be read is left out.
  void add(const models::BlockSpec& spec, const std::map<std::string, ModuleStats>& stats);

  /// `suffix` names the tensor: "scales".
  std::vector<Finding> check(const std::string& suffix) const;

  /// Sizes in the first and last `num_outer` layers, by module. None where there are no four layers between them.
  std::map<std::string, OuterSize> outer_sizes(std::int64_t num_outer) const;

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
