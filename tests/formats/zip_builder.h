#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble::formats {

/// A zip archive of stored files, byte by byte (PKWARE APPNOTE 4.3).
class ZipBuilder {
 public:
  static constexpr int kStored = 0;
  static constexpr int kDeflated = 8;

  /// Content as it shall lie there; `method` is what the headers say about it.
  ZipBuilder& add(std::string_view name, std::string_view content, int method = kStored) {
    const std::string offset = number(archive_.size(), 4);
    const std::string common = number(20, 2) + number(0, 2) + number(static_cast<std::uint64_t>(method), 2) +
                               number(0, 4) + number(0, 4) + number(content.size(), 4) + number(content.size(), 4) +
                               number(name.size(), 2) + number(0, 2);
    archive_ += "PK\x03\x04" + common;
    archive_ += name;
    archive_ += content;
    directory_ +=
        "PK\x01\x02" + number(20, 2) + common + number(0, 2) + number(0, 2) + number(0, 2) + number(0, 4) + offset;
    directory_ += name;
    ++count_;
    return *this;
  }

  std::string finish() const {
    return archive_ + directory_ + "PK\x05\x06" + number(0, 4) + number(count_, 2) + number(count_, 2) +
           number(directory_.size(), 4) + number(archive_.size(), 4) + number(0, 2);
  }

 private:
  static std::string number(std::uint64_t value, int num_bytes) {
    std::string bytes;
    for (int i = 0; i < num_bytes; ++i) bytes += static_cast<char>(value >> (8 * i));
    return bytes;
  }

  std::string archive_;
  std::string directory_;
  std::uint64_t count_ = 0;
};

}  // namespace nibble::formats
