#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

/// The kernels that measure what a GPU can do at most.
namespace nibble::bench {

/// A run of device memory.
struct DeviceSpan {
  const void* data = nullptr;
  std::int64_t size_bytes = 0;  // a multiple of 16
};

/// How the read kernel divides its work: the best of these is the ceiling.
struct ReadShape {
  int blocks_per_sm = 0;
  int unroll = 0;  // 16-byte loads in flight a thread: 4, 8 or 16
};
inline constexpr ReadShape kReadShapes[] = {{1, 16}, {2, 8}, {2, 16}, {4, 4}, {4, 8}, {8, 4}};

/// Reads `from` once and throws away what it read; `sink` [1] is never written, which the compiler cannot know.
void read_memory(const DeviceSpan& from, const ReadShape& shape, int num_sms, std::uint32_t* sink, cudaStream_t stream);

/// Random f16 or e4m3 of magnitudes from 2^-6 to 2^-5, both signs: data that costs what a model's costs.
void fill_random_f16(void* to, std::int64_t count, std::uint32_t seed, cudaStream_t stream);
void fill_random_e4m3(void* to, std::int64_t count, std::uint32_t seed, cudaStream_t stream);

}  // namespace nibble::bench
