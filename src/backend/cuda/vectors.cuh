#pragma once

#include <cstdint>

#include "backend/cuda/element.cuh"

/// Rows read and written in runs of elements, 16 bytes at a time where the rows are aligned to that: where a run
/// divides the width. Other rows are read element by element.
namespace nibble::backend::cuda {

/// Elements of T in 16 bytes.
template <class T>
inline constexpr int kVectorSize = Vector<T>::kSize;

template <class T>
__host__ __device__ constexpr std::int64_t num_vectors(std::int64_t width) {
  return (width + kVectorSize<T> - 1) / kVectorSize<T>;
}

/// kSize consecutive elements, as aligned as they can be.
template <class T, int kSize>
struct alignas(sizeof(T) * kSize < 16 ? sizeof(T) * kSize : 16) Run {
  T values[kSize];
};

/// Elements [v * kSize, (v + 1) * kSize) of a row as floats; zeros past its end.
template <class T, int kSize>
__device__ void load_run(const T* row, std::int64_t v, std::int64_t width, float (&values)[kSize]) {
  if (width % kSize == 0) {
    const auto loaded = reinterpret_cast<const Run<T, kSize>*>(row)[v];
#pragma unroll
    for (int j = 0; j < kSize; ++j) values[j] = static_cast<float>(loaded.values[j]);
    return;
  }
#pragma unroll
  for (int j = 0; j < kSize; ++j) values[j] = v * kSize + j < width ? static_cast<float>(row[v * kSize + j]) : 0;
}

/// The same elements from floats, rounded; those past the row's end are left out.
template <class T, int kSize>
__device__ void store_run(T* row, std::int64_t v, std::int64_t width, const float (&values)[kSize]) {
  if (width % kSize == 0) {
    Run<T, kSize> stored;
#pragma unroll
    for (int j = 0; j < kSize; ++j) stored.values[j] = static_cast<T>(values[j]);
    reinterpret_cast<Run<T, kSize>*>(row)[v] = stored;
    return;
  }
#pragma unroll
  for (int j = 0; j < kSize; ++j) {
    if (v * kSize + j < width) row[v * kSize + j] = static_cast<T>(values[j]);
  }
}

}  // namespace nibble::backend::cuda
