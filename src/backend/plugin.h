#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "backend/backend.h"

/// Backends that a machine may lack the libraries of live in shared libraries beside the binary and are opened on
/// demand, so one `nibble` runs everywhere and says in one line what is missing.
namespace nibble::backend {

/// Changes with backend.h: plug-in and binary must come from the same build.
inline constexpr std::uint32_t kPluginVersion = 2;

/// The one C symbol of a plug-in, `nibble_backend_plugin`. Makes its backend; or returns null and writes why, as one
/// zero-terminated sentence, into `message` [message_capacity]. Throws nothing.
using PluginEntry = Backend* (*)(std::uint32_t version, const BackendOptions& options, char* message,
                                 std::size_t message_capacity);
inline constexpr char kPluginSymbol[] = "nibble_backend_plugin";

/// Opens `file_name` ("libnibble_cuda.so") from the binary's folder, then from ../lib beside it, and makes its
/// backend. The library stays open until the process ends.
/// Errors: NotFound: where it was looked for; Unavailable: the plug-in's own sentence.
std::unique_ptr<Backend> open_plugin(std::string_view file_name, const BackendOptions& options);

}  // namespace nibble::backend
