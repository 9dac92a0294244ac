#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "verify/finding.h"

/// `nibble verify`: whether a checkpoint is what it says it is. Some faults break a promise of a format (a missing
/// shard, a shape, a NaN, a group out of range); others only make the model worse, and are found by what trained
/// weights have in common: a mean near zero, groups that reach the ends of their grid, units that line up across two
/// linears, layers that change slowly in scale, and that a short text is likely.
namespace nibble::verify {

/// Whether a short text goes through the model where its weights raised no finding: what stands in the outermost layers
/// shows in nothing but the loss. About as much work as a prompt of 5000 tokens.
enum class ForwardPass : std::uint8_t { Run, Skip };

struct VerifyOptions {
  std::filesystem::path model;  // folder or GGUF file
  ForwardPass forward_pass = ForwardPass::Run;
  int num_threads = 0;  // 0: every available CPU
  /// Called after each decoder block, of the reading pass and then of the forward pass.
  std::function<void(std::string_view pass, std::int64_t done, std::int64_t total)> on_block =
      [](std::string_view, std::int64_t, std::int64_t) {};
};

struct VerifyReport {
  std::int64_t num_tensors = 0;
  std::int64_t num_linears = 0;     // checked, quantized or not
  std::vector<Finding> findings;    // files, then tensors in the order of the model
  std::optional<double> text_loss;  // of the forward pass as stored, nats a token
  std::int64_t num_text_tokens = 0;
  std::string no_forward_pass;  // why there was none; else empty
};

/// Reads the whole checkpoint once, a decoder block at a time, and once more for the forward pass.
/// Errors: NotFound, Unavailable and Unsupported where there is nothing to judge: no such model, no permission, an
/// architecture or a format that nibble does not read. What is broken is a finding, not an error.
VerifyReport verify_checkpoint(const VerifyOptions& options);

Json to_json(const VerifyReport& report);

}  // namespace nibble::verify
