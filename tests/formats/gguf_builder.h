#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace nibble::formats {

/// Bytes of a GGUF file, put together piece by piece, so that a test can get any piece wrong.
class GgufBuilder {
 public:
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;

  template <class T>
  GgufBuilder& number(std::string_view key, std::uint32_t type, T value) {
    put_string(metadata_, key);
    put(metadata_, type);
    put(metadata_, value);
    ++num_metadata_;
    return *this;
  }
  GgufBuilder& u32(std::string_view key, std::uint32_t value) { return number(key, 4, value); }
  GgufBuilder& f32(std::string_view key, float value) { return number(key, 6, value); }
  GgufBuilder& boolean(std::string_view key, bool value) {
    return number(key, 7, static_cast<std::uint8_t>(value ? 1 : 0));
  }
  GgufBuilder& string(std::string_view key, std::string_view value) {
    put_string(metadata_, key);
    put(metadata_, std::uint32_t{8});
    put_string(metadata_, value);
    ++num_metadata_;
    return *this;
  }
  GgufBuilder& strings(std::string_view key, const std::vector<std::string>& values) {
    put_array_header(key, 8, values.size());
    for (const std::string& value : values) put_string(metadata_, value);
    return *this;
  }
  template <class T>
  GgufBuilder& numbers(std::string_view key, const std::vector<T>& values) {
    put_array_header(key, std::is_same_v<T, float> ? 6 : 5, values.size());
    for (const T value : values) put(metadata_, value);
    return *this;
  }
  /// Any bytes in the place of metadata entries; counts as `entries`.
  GgufBuilder& raw_metadata(std::string_view bytes, std::uint64_t entries) {
    metadata_ += bytes;
    num_metadata_ += entries;
    return *this;
  }

  /// `sizes` in GGUF's order, innermost first. The data goes to the next aligned offset.
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& sizes, std::uint32_t type,
                      std::string_view bytes) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return tensor_at(name, sizes, type, data_.size(), bytes);
  }
  GgufBuilder& tensor_at(std::string_view name, const std::vector<std::uint64_t>& sizes, std::uint32_t type,
                         std::uint64_t offset, std::string_view bytes) {
    put_string(tensors_, name);
    put(tensors_, static_cast<std::uint32_t>(sizes.size()));
    for (const std::uint64_t size : sizes) put(tensors_, size);
    put(tensors_, type);
    put(tensors_, offset);
    ++num_tensors_;
    data_ += bytes;
    return *this;
  }
  GgufBuilder& floats(std::string_view name, const std::vector<std::uint64_t>& sizes,
                      const std::vector<float>& values) {
    return tensor(name, sizes, 0, {reinterpret_cast<const char*>(values.data()), values.size() * 4});
  }

  std::string build() const {
    std::string file = "GGUF";
    put(file, version);
    put(file, num_tensors_);
    put(file, num_metadata_);
    file += metadata_ + tensors_;
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data_;
  }

 private:
  template <class T>
  static void put(std::string& bytes, T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  static void put_string(std::string& bytes, std::string_view text) {
    put(bytes, static_cast<std::uint64_t>(text.size()));
    bytes += text;
  }
  void put_array_header(std::string_view key, std::uint32_t type, std::uint64_t count) {
    put_string(metadata_, key);
    put(metadata_, std::uint32_t{9});
    put(metadata_, type);
    put(metadata_, count);
    ++num_metadata_;
  }

  std::string metadata_;
  std::string tensors_;
  std::string data_;
  std::uint64_t num_metadata_ = 0;
  std::uint64_t num_tensors_ = 0;
};

}  // namespace nibble::formats
