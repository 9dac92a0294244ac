#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cpu/layout.h"

/// Prefill on Intel's tile unit (Sapphire Rapids and later), which Highway does not know: 16 x 16 x 64 int8
/// multiply-adds an instruction, eight times AVX-512 VNNI.
namespace nibble::backend::cpu {

/// Whether CPU and kernel let this process use int8 tiles. Asks the kernel for the tile state once.
bool amx_is_available();

/// One tile of weights ready for the tile unit.
struct SignedPanel {
  const std::int8_t* values = nullptr;  // code - zero, laid out as IntTiles at 8 bits: [num_chunks, 8, 16 rows, 4]
  const std::byte* scales = nullptr;    // the tile's, as in IntTiles
  std::int64_t first_row = 0;
};

/// y = W x (+ bias) for some tiles and all tokens: the same sums in the same order as the vector kernels, hence the
/// same bits. `scratch` is 64-byte aligned. End a run of calls with amx_release().
void amx_tiles(const IntTiles& w, std::span<const SignedPanel> panels, const IntRows& x, std::span<const float> bias,
               Matrix<float> y, std::byte* scratch);
std::size_t amx_scratch_bytes(std::int64_t num_activation_groups);
/// Tiles are a state of the thread: free them, or every context switch saves 8 KiB.
void amx_release();

}  // namespace nibble::backend::cpu
