#include "backend/plugin.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <system_error>

#include "core/error.h"

namespace nibble::backend {
namespace {

namespace fs = std::filesystem;

fs::path find_plugin(std::string_view file_name) {
  const fs::path folder = fs::read_symlink("/proc/self/exe").parent_path();
  std::error_code error;
  for (const fs::path& candidate : {folder / file_name, folder.parent_path() / "lib" / file_name}) {
    if (fs::exists(candidate, error)) return candidate;
  }
  throw Error(ErrorCode::NotFound,
              fmt::format("{} is not beside nibble in {}: build it with `scripts/build cuda` or use --device cpu",
                          file_name, folder.string()));
}

}  // namespace

std::unique_ptr<Backend> open_plugin(std::string_view file_name, const BackendOptions& options) {
  const fs::path path = find_plugin(file_name);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Error(ErrorCode::Unavailable, fmt::format("cannot open {}", dlerror()));
  const auto entry = reinterpret_cast<PluginEntry>(dlsym(library, kPluginSymbol));
  if (entry == nullptr) {
    throw Error(ErrorCode::Unavailable,
                fmt::format("{}: no nibble plug-in ({} is missing)", path.string(), kPluginSymbol));
  }
  std::array<char, 512> message{};
  Backend* backend = entry(kPluginVersion, options, message.data(), message.size());
  if (backend == nullptr) throw Error(ErrorCode::Unavailable, fmt::format("{}: {}", path.string(), message.data()));
  return std::unique_ptr<Backend>(backend);
}

}  // namespace nibble::backend
