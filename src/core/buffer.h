#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace nibble {

enum class DeviceKind : std::uint8_t { Host, Cuda };

/// Where memory lives.
struct Device {
  DeviceKind kind = DeviceKind::Host;
  std::int32_t index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

/// A block of memory with one owner: pointer, size, device and how to free it. Knows no CUDA: a device
/// allocator passes its own deleter. Move only.
class Buffer {
 public:
  using Deleter = void (*)(void* data, void* context);

  Buffer() = default;
  Buffer(void* data, std::size_t size_bytes, Device device, Deleter deleter, void* context = nullptr)
      : data_(data), size_bytes_(size_bytes), device_(device), deleter_(deleter), context_(context) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (deleter_ != nullptr) deleter_(data_, context_);
  }

  /// Host memory aligned to 64 bytes (a cache line, an AVX-512 vector), not initialised.
  /// Errors: OutOfMemory with the size asked for.
  static Buffer host(std::size_t size_bytes);
  /// Memory that somebody else owns and that outlives this buffer, such as a mapped file.
  static Buffer borrowed(const void* data, std::size_t size_bytes, Device device = {});

  void* data() { return data_; }
  const void* data() const { return data_; }
  std::size_t size_bytes() const { return size_bytes_; }
  Device device() const { return device_; }
  bool owns() const { return deleter_ != nullptr; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(device_, other.device_);
    std::swap(deleter_, other.deleter_);
    std::swap(context_, other.context_);
  }

  void* data_ = nullptr;
  std::size_t size_bytes_ = 0;
  Device device_;
  Deleter deleter_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace nibble
