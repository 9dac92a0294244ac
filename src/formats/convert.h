#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace nibble::formats {

struct ConvertOptions {
  std::filesystem::path input;   // a quantized checkpoint
  std::filesystem::path output;  // folder, created; must not hold a checkpoint
  std::string format;            // as registry.cpp names it; "autoawq" is awq
  /// Called after each quantized module.
  std::function<void(std::int64_t done, std::int64_t total)> on_module = [](std::int64_t, std::int64_t) {};
};

struct ConvertReport {
  std::string from;              // method of the input
  std::int64_t num_modules = 0;  // quantized ones
  std::int64_t output_bytes = 0;
};

/// Writes a quantized checkpoint in another format that holds the same numbers, one module at a time. Each written
/// module is read back and compared: codes, scales, zero points and order are identical, or nothing is written. Float
/// tensors and other files are copied as they are.
/// Errors: as Checkpoint::open and CheckpointWriter; Unsupported naming the module and what the format cannot hold
/// (zero points outside GPTQ v1's range, act-order groups in AWQ and compressed-tensors, bits, scales that are no f16).
ConvertReport convert_checkpoint(const ConvertOptions& options);

}  // namespace nibble::formats
