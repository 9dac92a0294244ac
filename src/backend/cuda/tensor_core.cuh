#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

/// The PTX that streaming kernels are made of.
namespace nibble::backend::cuda {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// ── Copies to shared memory ────────────────────────────────────────────────────────────────────────────────

/// Copies this lane's 16 bytes, or writes zeros.
__device__ inline void vector_copy(void* to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(is_there ? 16 : 0)
               : "memory");
}

/// Copies this lane's 16 bytes.
__device__ inline void vector_copy(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

/// The lane's copies since the last commit are a group.
__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most so many of the lane's groups are under way.
template <int kUnderWay>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnderWay) : "memory");
}

// ── Numbers in registers ───────────────────────────────────────────────────────────────────────────────────

__device__ inline __half2 as_half2(std::uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ inline std::uint32_t as_bits(__half2 halves) {
  return *reinterpret_cast<const std::uint32_t*>(&halves);
}

/// (bits & kMask) | or_bits, which the compiler makes of two instructions where both are constants.
template <std::uint32_t kMask>
__device__ inline std::uint32_t mask_or(std::uint32_t bits, std::uint32_t or_bits) {
  std::uint32_t result = 0;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(bits), "n"(kMask), "r"(or_bits));
  return result;
}

/// Bytes of the eight in (low, high), by the selector's nibbles of 0 … 7.
__device__ inline std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  return __byte_perm(low, high, selector);
}

/// sums[16 × 8] += a[16 × 16] b[16 × 8], f16 in, f32 sums. Lane (g, t) = (lane / 4, lane % 4) holds
/// sums: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ inline void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace nibble::backend::cuda
