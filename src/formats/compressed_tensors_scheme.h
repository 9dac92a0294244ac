#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "formats/checkpoint.h"

/// The `quantization_config` of compressed-tensors (formats.md §4; compressed-tensors 0.20.0 was read): which modules
/// are quantized, and how each of them is stored.
namespace nibble::formats {

/// How the values of a module stand in the file.
enum class CompressedLayout : std::uint8_t {
  PackQuantized,   // weight_packed: integers of `bits` in a bit stream
  IntQuantized,    // weight: integers, one an int8
  FloatQuantized,  // weight: F8_E4M3
  Dense,           // weight: float, as it was
};

/// What shares a scale.
enum class CompressedStrategy : std::uint8_t { Tensor, Channel, Group, Block };

/// One entry of config_groups.
struct CompressedScheme {
  std::string name;                  // its key: "group_0"
  std::vector<std::string> targets;  // module names, "re:" and a pattern, or a class ("Linear")
  CompressedLayout layout = CompressedLayout::PackQuantized;
  CompressedStrategy strategy = CompressedStrategy::Group;
  std::int32_t bits = 4;
  std::int64_t group_size = -1;  // inputs that share a scale, -1: all of them; or the side of a block
  bool symmetric = true;
  bool quantizes_activations = false;
};

struct CompressedConfig {
  std::vector<CompressedScheme> schemes;
  std::vector<std::string> ignore;

  /// The scheme of a linear module: the one that names it, else the first with a pattern that matches, else the first
  /// that targets "Linear"; nullptr where `ignore` has it, or no scheme. Errors: InvalidArgument for a bad pattern.
  const CompressedScheme* scheme_of(std::string_view module) const;
};

/// Errors: Unsupported naming what nibble does not read (sparse, nvfp4 and mxfp forms, rotated weights, bits);
/// InvalidArgument for wrong types and contradictions.
CompressedConfig parse_compressed_config(const Json& raw);

/// The object for modules stored like this: one group a kind, the most common of which targets "Linear".
Json make_compressed_config(const std::vector<ModuleScheme>& modules, std::vector<std::string> ignore);

}  // namespace nibble::formats
