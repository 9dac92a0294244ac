#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/json.h"
#include "verify/finding.h"

/// `nibble verify`: whether a checkpoint is what it says it is. Some faults break a promise of a format (a missing
/// shard, a shape, a NaN, a group out of range); others only make the model worse, and are found by what trained
/// weights have in common: a mean near zero, groups that reach the ends of their grid, units that line up across two
/// linears, layers that change slowly in scale.
namespace nibble::verify {

struct VerifyOptions {
  std::filesystem::path model;  // folder or GGUF file
  int num_threads = 0;          // 0: every available CPU
  /// Called after each decoder block.
  std::function<void(std::int64_t done, std::int64_t total)> on_block = [](std::int64_t, std::int64_t) {};
};

struct VerifyReport {
  std::int64_t num_tensors = 0;
  std::int64_t num_linears = 0;   // checked, quantized or not
  std::vector<Finding> findings;  // files, then tensors in the order of the model
};

/// Reads the whole checkpoint once, a decoder block at a time.
/// Errors: NotFound, Unavailable and Unsupported where there is nothing to judge: no such model, no permission, an
/// architecture or a format that nibble does not read. What is broken is a finding, not an error.
VerifyReport verify_checkpoint(const VerifyOptions& options);

Json to_json(const VerifyReport& report);

}  // namespace nibble::verify
