#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

/// Pickles of state dicts, put together from protocol 2's instructions (Python's pickletools) as torch.save uses them.
namespace nibble::formats::pickles {

inline std::string text(std::string_view value) {
  std::string code = "X";
  for (int i = 0; i < 4; ++i) code += static_cast<char>(value.size() >> (8 * i));
  return code + std::string(value);
}

inline std::string integer(std::int32_t value) {
  std::string code = "J";
  for (int i = 0; i < 4; ++i) code += static_cast<char>(static_cast<std::uint32_t>(value) >> (8 * i));
  return code;
}

inline std::string tuple(const std::vector<std::string>& items) {
  std::string code = "(";
  for (const std::string& item : items) code += item;
  return code + "t";
}

inline std::string global(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}

inline std::string call(const std::string& function, const std::vector<std::string>& arguments) {
  return function + tuple(arguments) + "R";
}

inline std::string storage(std::string_view type, std::string_view key, std::int32_t size) {
  return tuple({text("storage"), global("torch", type), text(key), text("cpu"), integer(size)}) + "Q";
}

struct TensorSpec {
  std::string type = "FloatStorage";
  std::string key = "0";
  std::int32_t storage_size = 6;
  std::int32_t offset = 0;
  std::vector<std::int32_t> sizes{2, 3};
  std::vector<std::int32_t> strides{3, 1};
};

inline std::string tensor(const TensorSpec& spec) {
  const auto integers = [](const std::vector<std::int32_t>& values) {
    std::vector<std::string> items;
    for (const std::int32_t value : values) items.push_back(integer(value));
    return tuple(items);
  };
  return call(global("torch._utils", "_rebuild_tensor_v2"),
              {storage(spec.type, spec.key, spec.storage_size), integer(spec.offset), integers(spec.sizes),
               integers(spec.strides), "\x89", call(global("collections", "OrderedDict"), {})});
}

/// {name: code, …} as an OrderedDict.
inline std::string state_dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string code = "\x80\x02" + call(global("collections", "OrderedDict"), {}) + "(";
  for (const auto& [name, value] : items) code += text(name) + value;
  return code + "u.";
}

}  // namespace nibble::formats::pickles
