#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/block.h"
#include "quantize/quantizer.h"

/// Layers that are quantized otherwise than the rest, or not at all.
namespace nibble::quantize {

/// What `--layer PATTERN=…` asks for: "*.down_proj=8bit", "layers.0.=8bit,group=32,asym".
struct LayerOverride {
  std::string pattern;
  std::optional<std::int32_t> bits;
  std::optional<std::int64_t> group_size;
  std::optional<Symmetry> symmetry;
};

/// Errors: InvalidArgument quoting the text and what is expected.
LayerOverride parse_layer_override(std::string_view text);

/// Whether `pattern` occurs in a module's name, `*` standing for any characters: "down_proj", "layers.0.",
/// "layers.*.self_attn".
bool matches_pattern(std::string_view pattern, std::string_view module);

/// What becomes of the linears of one stage.
struct StageChoice {
  bool is_skipped = false;  // they stay float
  MethodOptions options;
};

/// For each block and stage, `options` with every override that matches, the last one winning. A stage's linears go
/// together, because servers fuse q, k, v and gate, up and need one scheme for all.
/// Errors: InvalidArgument naming a pattern that matches no linear, or the linears of a stage that it tears apart.
std::vector<std::vector<StageChoice>> choose_stages(std::span<const models::BlockSpec> blocks,
                                                    const MethodOptions& options,
                                                    std::span<const std::string> skip_layers,
                                                    std::span<const LayerOverride> overrides);

}  // namespace nibble::quantize
