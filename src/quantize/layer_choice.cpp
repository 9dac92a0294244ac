#include "quantize/layer_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace nibble::quantize {
namespace {

std::optional<std::int64_t> parse_number(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// "8bit", "group=32", "sym" or "asym". Returns false for anything else.
bool apply_item(std::string_view item, LayerOverride& to) {
  if (item == "sym") {
    to.symmetry = Symmetry::Symmetric;
  } else if (item == "asym") {
    to.symmetry = Symmetry::Asymmetric;
  } else if (item.starts_with("group=")) {
    to.group_size = parse_number(item.substr(6));
    return to.group_size && (*to.group_size == -1 || *to.group_size > 0);
  } else if (item.ends_with("bit")) {
    const auto bits = parse_number(item.substr(0, item.size() - 3));
    if (!bits || (*bits != 2 && *bits != 3 && *bits != 4 && *bits != 8)) return false;
    to.bits = static_cast<std::int32_t>(*bits);
  } else {
    return false;
  }
  return true;
}

/// Which linears of the stage a pattern names. Errors: InvalidArgument where it is some and not all.
bool names_stage(std::string_view pattern, const models::BlockSpec& block, const models::Stage& stage) {
  std::string named;
  std::string other;
  for (const std::string& linear : stage.linears) {
    (matches_pattern(pattern, block.module_name(linear)) ? named : other) = block.module_name(linear);
  }
  if (!named.empty() && !other.empty()) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("pattern '{}' names {} but not {}, and servers fuse the two: name both or neither, as with "
                            "'*.self_attn.*' or '*.mlp.*'",
                            pattern, named, other));
  }
  return !named.empty();
}

template <class Apply>
void for_each_named_stage(std::span<const models::BlockSpec> blocks, std::string_view pattern, const Apply& apply) {
  bool is_named = false;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    for (std::size_t s = 0; s < blocks[b].stages.size(); ++s) {
      if (!names_stage(pattern, blocks[b], blocks[b].stages[s])) continue;
      is_named = true;
      apply(b, s);
    }
  }
  if (is_named) return;
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("pattern '{}' matches no linear of the model; they are called like {}", pattern,
                          blocks.front().module_name(blocks.front().stages.front().linears.front())));
}

void apply_override(const LayerOverride& override, MethodOptions& options) {
  if (override.bits) options.grid.bits = *override.bits;
  if (override.group_size) options.group_size = *override.group_size;
  if (override.symmetry) options.grid.symmetry = *override.symmetry;
}

}  // namespace

LayerOverride parse_layer_override(std::string_view text) {
  const std::size_t equals = text.find('=');
  LayerOverride parsed;
  bool is_understood = equals != std::string_view::npos && equals > 0 && equals + 1 < text.size();
  if (is_understood) {
    parsed.pattern = text.substr(0, equals);
    std::string_view items = text.substr(equals + 1);
    while (is_understood && !items.empty()) {
      const std::size_t comma = std::min(items.find(','), items.size());
      is_understood = apply_item(items.substr(0, comma), parsed);
      items.remove_prefix(std::min(comma + 1, items.size()));
    }
  }
  if (is_understood) return parsed;
  throw Error(
      ErrorCode::InvalidArgument,
      fmt::format("--layer '{}': expected PATTERN=SETTING[,SETTING…], as in '*.down_proj=8bit,group=32'; settings "
                  "are 2bit, 3bit, 4bit, 8bit, group=N (-1: a whole row), sym and asym",
                  text));
}

bool matches_pattern(std::string_view pattern, std::string_view module) {
  // The pieces between the stars, one behind the other; the first place for each leaves the most for the rest.
  std::size_t from = 0;
  while (true) {
    const std::size_t star = pattern.find('*');
    const std::string_view piece = pattern.substr(0, star);
    const std::size_t found = module.find(piece, from);
    if (found == std::string_view::npos) return false;
    if (star == std::string_view::npos) return true;
    from = found + piece.size();
    pattern.remove_prefix(star + 1);
  }
}

std::vector<std::vector<StageChoice>> choose_stages(std::span<const models::BlockSpec> blocks,
                                                    const MethodOptions& options,
                                                    std::span<const std::string> skip_layers,
                                                    std::span<const LayerOverride> overrides) {
  std::vector<std::vector<StageChoice>> choices;
  for (const models::BlockSpec& block : blocks) {
    choices.emplace_back(block.stages.size(), StageChoice{.is_skipped = false, .options = options});
  }
  for (const LayerOverride& override : overrides) {
    for_each_named_stage(blocks, override.pattern,
                         [&](std::size_t b, std::size_t s) { apply_override(override, choices[b][s].options); });
  }
  for (const std::string& pattern : skip_layers) {
    for_each_named_stage(blocks, pattern, [&](std::size_t b, std::size_t s) { choices[b][s].is_skipped = true; });
  }
  const bool is_left = std::ranges::any_of(choices, [](const auto& stages) {
    return std::ranges::any_of(stages, [](const StageChoice& choice) { return !choice.is_skipped; });
  });
  if (is_left) return choices;
  throw Error(ErrorCode::InvalidArgument, "--skip-layers leaves nothing to quantize");
}

}  // namespace nibble::quantize
