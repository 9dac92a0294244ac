#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "backend/backend.h"
#include "core/error.h"

/// Element types of kernels, chosen at run time.
namespace nibble::backend::cuda {

inline constexpr int kWarpSize = 32;

/// Calls `use` with a value of the device type of a float activation. `operation` is for the message.
template <class Use>
void with_float_type(ActivationKind kind, const char* operation, Use use) {
  switch (kind) {
    case ActivationKind::F32: return use(float{});
    case ActivationKind::F16: return use(__half{});
    case ActivationKind::BF16: return use(__nv_bfloat16{});
    default: break;
  }
  throw Error(ErrorCode::Unsupported, std::string("cuda ") + operation +
                                          ": activations are f32, f16 or bf16, not format " +
                                          std::to_string(static_cast<int>(kind)));
}

/// Calls `use` with a value of the device type of a float dtype, E4M3 included.
template <class Use>
void with_dtype(DType dtype, const char* operation, Use use) {
  switch (dtype) {
    case DType::F32: return use(float{});
    case DType::F16: return use(__half{});
    case DType::BF16: return use(__nv_bfloat16{});
    case DType::F8E4M3: return use(__nv_fp8_e4m3{});
    default: break;
  }
  throw Error(ErrorCode::Unsupported, std::string("cuda ") + operation + ": no kernel for this dtype");
}

template <class T>
T* device_data(Activation& activation) {
  return static_cast<T*>(activation.values.mutable_view().data());
}
template <class T>
const T* device_data(const Activation& activation) {
  return static_cast<const T*>(activation.values.view().data());
}

/// 16 bytes of consecutive elements.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

/// Sum over the warp, the same bits in every run. All lanes get it.
__device__ inline float warp_sum(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffff, value, offset);
  return value;
}

}  // namespace nibble::backend::cuda
