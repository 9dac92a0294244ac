#include "formats/fused_names.h"

#include <array>
#include <string_view>
#include <utility>

namespace nibble::formats {

std::string fused_name(const std::string& module) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 2> kFirstOfGroup{
      {{".q_proj", ".qkv_proj"}, {".gate_proj", ".gate_up_proj"}}};
  for (const auto& [first, fused] : kFirstOfGroup) {
    if (module.ends_with(first)) return module.substr(0, module.size() - first.size()) + std::string(fused);
  }
  return {};
}

std::vector<std::string> with_fused_names(std::span<const std::string> modules) {
  std::vector<std::string> names;
  for (const std::string& module : modules) {
    names.push_back(module);
    if (std::string fused = fused_name(module); !fused.empty()) names.push_back(std::move(fused));
  }
  return names;
}

}  // namespace nibble::formats
