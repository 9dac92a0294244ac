#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace nibble {

/// Which file a mapped address belongs to, readable from a signal handler. MappedFile keeps it current.
void remember_mapping(std::span<const std::byte> range, const std::string& path);
void forget_mapping(const std::byte* begin);

}  // namespace nibble
