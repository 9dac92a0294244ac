#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "verify/finding.h"
#include "weights/linear_weights.h"

namespace nibble::verify {

/// Finds rows of lookup tables that stand in two linears: every table is fitted to its own row, so two equal ones are a
/// copy.
class CodebookRows {
 public:
  /// Findings for rows of `module` that were seen in another linear before.
  std::vector<Finding> add(const std::string& module, const weights::CodebookWeights& weights);

 private:
  struct Place {
    std::int32_t module;
    std::int32_t row;
  };

  std::vector<std::string> modules_;
  std::unordered_map<std::string, Place> places_;  // by the bytes of a row
};

}  // namespace nibble::verify
