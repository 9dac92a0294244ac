// Regime: y[M, N] = x[M, K] W[N, K]^T with weights looked up in a table of 16 or 8 entries for each output row, and f32
// activations. Layout in: CodebookTiles (layout.h), x row-major f32. Layout out: y row-major f32.
// Decode (M <= kMaxLookupTokens): tables stay in registers, a permutation instruction looks 16 weights up. Bytes moved
// per weight: 0.5 at 4 bits, 0.4 at 3; ceiling: memory bandwidth, or three vector instructions for 16 weights. Prefill:
// a tile is looked up once for some tens of tokens; ceiling: two fused multiply-adds a cycle.
//
// Unlike the other kernels these have inputs in their lanes, because a row's table serves one row. Sums are kept in 16
// lanes on every target (lane j: inputs j, j + 16, …, in order) and added in one fixed tree at the end, so a row's bits
// are the same for every batch size and thread count here too. Sparse values are summed on their own, in order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/codebook_kernels.cpp"
#include <hwy/foreach_target.h>
// clang-format off: highway.h must follow foreach_target.h
#include <hwy/highway.h>
// clang-format on

#include <algorithm>

#include "backend/cpu/kernels.h"
#include "backend/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using U32 = hn::RebindToUnsigned<F32>;
using VU = hn::Vec<U32>;

inline constexpr std::int64_t kStep = kTileRows;  // inputs looked up together, in as many lanes

// AVX-512 has 32 registers: for each of 8 rows a table, codes and sums, or of 4 rows with the sums of up to 4 tokens.
// AVX2 has 16, and a table takes two.
inline constexpr int kRowsOfOne = kParts == 1 ? 8 : kParts == 2 ? 2 : 1;
inline constexpr int kRowsOfMany = kParts == 1 ? 4 : kRowsOfOne;
inline constexpr int kMaxLookupTokens = kParts == 1 ? 4 : 2;
// Prefill: the sums of 4 rows x 6 tokens, four weights, and a broadcast-free load a token.
inline constexpr int kPanelRows = kParts == 1 ? 4 : 2;
inline constexpr int kPanelTokens = kParts == 1 ? 6 : 2;

/// The 16 entries of a row's table (8 twice at 3 bits, so that the bit above a 3-bit code has no effect).
struct Table {
#if HWY_TARGET > HWY_AVX2
  float entries[kTileRows];
#else
  VF parts[kParts];
#endif
};

template <class T>
HWY_INLINE Table load_table(const T* from) {
  Table table;
  for (int p = 0; p < kParts; ++p) {
#if HWY_TARGET > HWY_AVX2
    hn::StoreU(load_float(from + p * kLanes), F32(), table.entries + p * kLanes);
#else
    table.parts[p] = load_float(from + p * kLanes);
#endif
  }
  return table;
}

/// The entries that the low kBits of each lane name; what stands above them has no effect.
template <int kBits>
HWY_INLINE VF look_up(const Table& table, VU codes) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  return VF{_mm512_permutexvar_ps(codes.raw, table.parts[0].raw)};
#elif HWY_TARGET == HWY_AVX2
  const __m256 low = _mm256_permutevar8x32_ps(table.parts[0].raw, codes.raw);
  if constexpr (kBits == 3) return VF{low};
  const __m256 high = _mm256_permutevar8x32_ps(table.parts[1].raw, codes.raw);
  return VF{_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes.raw, 28)))};
#else
  HWY_ALIGN std::uint32_t indices[kLanes];
  HWY_ALIGN float values[kLanes];
  hn::Store(hn::And(codes, hn::Set(U32(), 15)), U32(), indices);
  for (int i = 0; i < kLanes; ++i) values[i] = table.entries[indices[i]];
  return hn::Load(F32(), values);
#endif
}

/// Copies the last `count` inputs of each token, fewer than a step, and lets the rest count as zero.
template <int kTokens>
HWY_INLINE void pad_inputs(std::int64_t count, float (&padded)[kTokens][kStep], const float* (&inputs)[kTokens]) {
  for (int t = 0; t < kTokens; ++t) {
    std::fill(padded[t], padded[t] + kStep, 0.0f);
    std::copy(inputs[t], inputs[t] + count, padded[t]);
    inputs[t] = padded[t];
  }
}

/// Lanes j and j + 8, then 4, 2 and 1 apart: the same tree for vectors of 4, 8 and 16 lanes.
HWY_INLINE float add_lanes(const VF (&sums)[kParts]) {
  HWY_ALIGN float lanes[kTileRows];
  if constexpr (kParts == 1) {
    const hn::Half<F32> half;
    const auto eight = hn::Add(hn::LowerHalf(half, sums[0]), hn::UpperHalf(half, sums[0]));
    const hn::Half<decltype(half)> quarter;
    hn::Store(hn::Add(hn::LowerHalf(quarter, eight), hn::UpperHalf(quarter, eight)), quarter, lanes);
  } else if constexpr (kParts == 2) {
    const hn::Half<F32> half;
    const auto eight = hn::Add(sums[0], sums[1]);
    hn::Store(hn::Add(hn::LowerHalf(half, eight), hn::UpperHalf(half, eight)), half, lanes);
  } else {
    hn::Store(hn::Add(hn::Add(sums[0], sums[2]), hn::Add(sums[1], sums[3])), F32(), lanes);
  }
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

/// sums[t]: the sparse part of one output for each token, in order.
template <int kTokens>
HWY_INLINE void add_sparse(const CodebookTiles& w, std::int64_t row, Matrix<const float> x, std::int64_t first_token,
                           float (&sums)[kTokens]) {
  const hn::CappedTag<float, 1> d;
  hn::Vec<decltype(d)> chains[kTokens];
  for (auto& chain : chains) chain = hn::Zero(d);
  if (!w.rows.is_empty()) {
    const auto* bounds = static_cast<const std::int32_t*>(w.rows.view().data()) + row;
    const auto* cols = static_cast<const std::int32_t*>(w.cols.view().data());
    const auto* vals = static_cast<const float*>(w.vals.view().data());
    const float* inputs = x.row(first_token);
    for (std::int32_t j = bounds[0]; j < bounds[1]; ++j) {
      const auto value = hn::Set(d, vals[j]);
      const float* input = inputs + cols[j];
      for (int t = 0; t < kTokens; ++t) {
        chains[t] = hn::MulAdd(value, hn::Set(d, input[t * x.row_stride]), chains[t]);
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) sums[t] = hn::GetLane(chains[t]);
}

template <int kRows, int kTokens>
struct Sums {
  VF lanes[kRows][kTokens][kParts];

  HWY_INLINE Sums() {
    for (auto& row : lanes) {
      for (auto& token : row) {
        for (VF& part : token) part = hn::Zero(F32());
      }
    }
  }
  /// y = sums + sparse part + bias, for the rows that exist.
  HWY_INLINE void store(const CodebookTiles& w, std::int64_t first_row, Matrix<const float> x, std::int64_t first_token,
                        std::span<const float> bias, Matrix<float> y) const {
    for (int r = 0; r < kRows && first_row + r < w.out_features; ++r) {
      const std::int64_t row = first_row + r;
      float sparse[kTokens];
      add_sparse(w, row, x, first_token, sparse);
      for (int t = 0; t < kTokens; ++t) {
        const float sum = add_lanes(lanes[r][t]) + sparse[t];
        y.row(first_token + t)[row] = bias.empty() ? sum : sum + bias[static_cast<std::size_t>(row)];
      }
    }
  }
};

template <int kRows>
HWY_INLINE void load_tables(const CodebookTiles& w, std::int64_t first_row, Table (&tables)[kRows]) {
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t at = (first_row + r) * kTileRows;
    tables[r] = w.tables.dtype() == DType::F16
                    ? load_table(static_cast<const hwy::float16_t*>(w.tables.view().data()) + at)
                    : load_table(static_cast<const float*>(w.tables.view().data()) + at);
  }
}

/// The 64 bytes of a row in each block: codes of 16 lanes.
HWY_INLINE const std::uint32_t* codes_at(const CodebookTiles& w, std::int64_t first_row) {
  const auto* codes = static_cast<const std::uint8_t*>(w.codes.view().data());
  return reinterpret_cast<const std::uint32_t*>(codes + first_row / kCodebookRows * w.group_bytes() +
                                                first_row % kCodebookRows * 64);
}
inline constexpr std::int64_t kBlockStride = kCodebookRows * kTileRows;  // 32-bit words from a block to the next

/// One step: `inputs` points at 16 inputs of each token.
template <int kBits, int kRows, int kTokens>
HWY_INLINE void look_up_step(const Table (&tables)[kRows], VU (&codes)[kRows][kParts],
                             const float* const (&inputs)[kTokens], Sums<kRows, kTokens>& sums) {
  for (int p = 0; p < kParts; ++p) {
    VF x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = hn::LoadU(F32(), inputs[t] + p * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const VF weights = look_up<kBits>(tables[r], codes[r][p]);
      codes[r][p] = hn::ShiftRight<kBits>(codes[r][p]);
      for (int t = 0; t < kTokens; ++t) sums.lanes[r][t][p] = hn::MulAdd(weights, x[t], sums.lanes[r][t][p]);
    }
  }
}

template <int kRows>
HWY_INLINE void load_codes(const std::uint32_t* words, VU (&codes)[kRows][kParts]) {
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kParts; ++p) codes[r][p] = hn::LoadU(U32(), words + r * kTileRows + p * kLanes);
  }
}

/// kRows rows, which lie in one group, against kTokens tokens.
template <int kBits, int kRows, int kTokens>
HWY_INLINE void look_up_block(const CodebookTiles& w, std::int64_t first_row, Matrix<const float> x,
                              std::int64_t first_token, std::span<const float> bias, Matrix<float> y) {
  constexpr int kSteps = codebook_steps(kBits);
  Table tables[kRows];
  load_tables(w, first_row, tables);
  Sums<kRows, kTokens> sums;
  const std::uint32_t* HWY_RESTRICT words = codes_at(w, first_row);
  const float* inputs[kTokens];
  for (int t = 0; t < kTokens; ++t) inputs[t] = x.row(first_token + t);
  VU codes[kRows][kParts];
  std::int64_t left = w.in_features;
  for (; left >= kSteps * kStep; left -= kSteps * kStep, words += kBlockStride) {
    load_codes(words, codes);
    for (int step = 0; step < kSteps; ++step) {
      look_up_step<kBits>(tables, codes, inputs, sums);
      for (const float*& input : inputs) input += kStep;
    }
  }
  if (left > 0) load_codes(words, codes);
  for (; left >= kStep; left -= kStep) {
    look_up_step<kBits>(tables, codes, inputs, sums);
    for (const float*& input : inputs) input += kStep;
  }
  if (left > 0) {
    HWY_ALIGN float padded[kTokens][kStep];
    pad_inputs(left, padded, inputs);
    look_up_step<kBits>(tables, codes, inputs, sums);
  }
  sums.store(w, first_row, x, first_token, bias, y);
}

template <int kBits, int kRows, int kTokens>
void look_up_tile(const CodebookTiles& w, std::int64_t tile, Matrix<const float> x, std::int64_t first_token,
                  std::span<const float> bias, Matrix<float> y) {
  for (std::int64_t r = 0; r < kTileRows; r += kRows) {
    look_up_block<kBits, kRows, kTokens>(w, tile * kTileRows + r, x, first_token, bias, y);
  }
}

/// panel [16, width]: the weights of one tile, rows of width = 16 * ceil(in_features / 16).
template <int kBits>
void fill_panel(const CodebookTiles& w, std::int64_t tile, float* HWY_RESTRICT panel) {
  const std::int64_t width = ceil_div(w.in_features, kStep) * kStep;
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    Table table[1];
    load_tables(w, tile * kTileRows + r, table);
    const std::uint32_t* HWY_RESTRICT words = codes_at(w, tile * kTileRows + r);
    float* HWY_RESTRICT to = panel + r * width;
    for (std::int64_t k = 0; k < w.in_features; words += kBlockStride) {
      VU codes[kParts];
      for (int p = 0; p < kParts; ++p) codes[p] = hn::LoadU(U32(), words + p * kLanes);
      for (int step = 0; step < codebook_steps(kBits) && k < w.in_features; ++step, k += kStep) {
        for (int p = 0; p < kParts; ++p) {
          hn::StoreU(look_up<kBits>(table[0], codes[p]), F32(), to + k + p * kLanes);
          codes[p] = hn::ShiftRight<kBits>(codes[p]);
        }
      }
    }
  }
}

/// One step of kPanelRows rows, `width` apart, against kTokens tokens.
template <int kTokens>
HWY_INLINE void multiply_step(const float* HWY_RESTRICT panel, std::int64_t width,
                              const float* const (&inputs)[kTokens], Sums<kPanelRows, kTokens>& sums) {
  for (int p = 0; p < kParts; ++p) {
    VF weights[kPanelRows];
    for (int r = 0; r < kPanelRows; ++r) weights[r] = hn::LoadU(F32(), panel + r * width + p * kLanes);
    for (int t = 0; t < kTokens; ++t) {
      const VF x = hn::LoadU(F32(), inputs[t] + p * kLanes);
      for (int r = 0; r < kPanelRows; ++r) sums.lanes[r][t][p] = hn::MulAdd(weights[r], x, sums.lanes[r][t][p]);
    }
  }
}

template <int kTokens>
HWY_INLINE void multiply_panel_block(const CodebookTiles& w, const float* HWY_RESTRICT panel, std::int64_t first_row,
                                     Matrix<const float> x, std::int64_t first_token, std::span<const float> bias,
                                     Matrix<float> y) {
  const std::int64_t width = ceil_div(w.in_features, kStep) * kStep;
  Sums<kPanelRows, kTokens> sums;
  const float* inputs[kTokens];
  for (int t = 0; t < kTokens; ++t) inputs[t] = x.row(first_token + t);
  std::int64_t left = w.in_features;
  for (; left >= kStep; left -= kStep, panel += kStep) {
    multiply_step(panel, width, inputs, sums);
    for (const float*& input : inputs) input += kStep;
  }
  if (left > 0) {
    HWY_ALIGN float padded[kTokens][kStep];
    pad_inputs(left, padded, inputs);
    multiply_step(panel, width, inputs, sums);
  }
  sums.store(w, first_row, x, first_token, bias, y);
}

void multiply_panel(const CodebookTiles& w, const float* panel, std::int64_t tile, Matrix<const float> x,
                    std::int64_t first_token, std::int64_t last_token, std::span<const float> bias, Matrix<float> y) {
  const std::int64_t width = ceil_div(w.in_features, kStep) * kStep;
  for (std::int64_t r = 0; r < kTileRows; r += kPanelRows) {
    const float* rows = panel + r * width;
    const std::int64_t first_row = tile * kTileRows + r;
    std::int64_t t = first_token;
    for (; t + kPanelTokens <= last_token; t += kPanelTokens) {
      multiply_panel_block<kPanelTokens>(w, rows, first_row, x, t, bias, y);
    }
    for (; t < last_token; ++t) multiply_panel_block<1>(w, rows, first_row, x, t, bias, y);
  }
}

template <int kBits>
void look_up_tokens(const CodebookTiles& w, std::int64_t tile, Matrix<const float> x, std::span<const float> bias,
                    Matrix<float> y) {
  std::int64_t t = 0;
  if constexpr (kMaxLookupTokens >= 4) {
    for (; t + 4 <= x.rows; t += 4) look_up_tile<kBits, kRowsOfMany, 4>(w, tile, x, t, bias, y);
  }
  for (; t + 2 <= x.rows; t += 2) look_up_tile<kBits, kRowsOfMany, 2>(w, tile, x, t, bias, y);
  for (; t < x.rows; ++t) look_up_tile<kBits, kRowsOfOne, 1>(w, tile, x, t, bias, y);
}

template <int kBits>
void codebook_tiles_of(const CodebookTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                       std::span<const float> bias, Matrix<float> y, float* panel) {
  if (x.rows <= kMaxLookupTokens) {
    for (std::int64_t i = 0; i < num_tiles; ++i) look_up_tokens<kBits>(w, first_tile + i, x, bias, y);
    return;
  }
  // As many tokens as stay in L2 beside the panel meet all tiles before the next ones do.
  constexpr std::int64_t kCache = 1 << 20;
  const std::int64_t row_bytes = w.in_features * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t chunk = std::clamp<std::int64_t>(kCache / row_bytes / kPanelTokens, 2, 16) * kPanelTokens;
  for (std::int64_t first = 0; first < x.rows; first += chunk) {
    const std::int64_t last = std::min(x.rows, first + chunk);
    for (std::int64_t i = 0; i < num_tiles; ++i) {
      fill_panel<kBits>(w, first_tile + i, panel);
      multiply_panel(w, panel, first_tile + i, x, first, last, bias, y);
    }
  }
}

void codebook_tiles(const CodebookTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                    std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  auto* panel = reinterpret_cast<float*>(scratch);
  if (w.bits == 3) return codebook_tiles_of<3>(w, first_tile, num_tiles, x, bias, y, panel);
  codebook_tiles_of<4>(w, first_tile, num_tiles, x, bias, y, panel);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::backend::cpu {

HWY_EXPORT(codebook_tiles);

void codebook_tiles(const CodebookTiles& w, std::int64_t first_tile, std::int64_t num_tiles, Matrix<const float> x,
                    std::span<const float> bias, Matrix<float> y, std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(codebook_tiles)(w, first_tile, num_tiles, x, bias, y, scratch);
}

std::size_t codebook_scratch_bytes(const CodebookTiles& w) {
  return static_cast<std::size_t>(ceil_div(w.in_features, kTileRows) * kTileRows * kTileRows) * sizeof(float);
}

}  // namespace nibble::backend::cpu
#endif  // HWY_ONCE
