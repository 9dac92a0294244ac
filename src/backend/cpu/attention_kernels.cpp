// Regime: query rows (tokens x heads of one kv head: 1 … 64 or so) against a paged context of up to 10^5 keys.
// Layout in: HeadCache (keys transposed within a block, so that 16 keys are 16 lanes and no sum crosses lanes), queries
// row-major. Bytes moved: head_dim * 2 * dtype a key for every kRowBlock rows. Ceilings: memory bandwidth in decode,
// two fused multiply-adds a cycle in prefill.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_kernels.cpp"
#include <hwy/foreach_target.h>
// clang-format off: highway.h must follow foreach_target.h
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

#include <limits>

#include "backend/cpu/kernels.h"
#include "backend/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::backend::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kKeyLanes = 16;  // keys per tile of scores: kParts vectors
inline constexpr int kRowBlock = kParts == 1 ? 8 : 4;
inline constexpr int kValueRows = 4;
inline constexpr int kValueVectors = kParts == 1 ? 4 : 2;

/// A cached E4M3 code. Unlike weights it may be NaN, which must stay visible downstream.
struct CachedFp8 {
  Fp8E4M3 code;
};

HWY_INLINE VF load_float(const CachedFp8* from) {
  const hn::Rebind<std::int16_t, F32> bits;
  const hn::Rebind<hwy::float16_t, F32> half;
  const auto number = fp8_as_half_bits(bits, &from->code);
  const auto exponent_and_mantissa = hn::Set(bits, std::int16_t{0x3f80});
  const auto is_nan = hn::Eq(hn::And(number, exponent_and_mantissa), exponent_and_mantissa);
#if HWY_TARGET == HWY_EMU128  // whose f16 has no NaN
  const hn::RebindToSigned<F32> wide;
  const auto mask = hn::RebindMask(F32(), hn::Ne(hn::PromoteTo(wide, hn::VecFromMask(bits, is_nan)), hn::Zero(wide)));
  return hn::IfThenElse(mask, hn::NaN(F32()), hn::PromoteTo(F32(), hn::BitCast(half, number)));
#else
  const auto marked = hn::Or(number, hn::IfThenElseZero(is_nan, hn::Set(bits, std::int16_t{0x7e00})));
  return hn::PromoteTo(F32(), hn::BitCast(half, marked));
#endif
}

/// What load_float's numbers lack.
float code_scale(DType dtype) {
  return dtype == DType::F8E4M3 ? kFp8CodeScale : 1.0f;
}

/// A task's state, in the caller's scratch.
struct Rows {
  float* queries;  // [num_rows, head_dim], scaled
  float* scores;   // [num_rows, kContextRun]
  float* sums;     // [num_rows, padded_dim] of probabilities times values
  float* maximum;  // [num_rows]
  float* weight;   // [num_rows] sum of probabilities
  float* decay;    // [num_rows] what the sums so far are multiplied by in this run
  std::int64_t num_rows;
};

/// Keys [first, last) that a row may see.
struct Visible {
  std::int64_t first;
  std::int64_t last;
};

HWY_INLINE Visible visible_keys(const AttentionTask& task, std::int64_t row) {
  const std::int64_t position = task.first_position + row / task.heads_per_kv;
  return {task.sliding_window > 0 ? std::max<std::int64_t>(0, position - task.sliding_window + 1) : 0, position + 1};
}

/// scores[row][16 keys] = query[row] . key, head_dim in order.
template <class T, int kRows>
HWY_INLINE void score_keys(const T* HWY_RESTRICT keys, std::int64_t key_stride, std::int64_t head_dim,
                           const float* HWY_RESTRICT queries, float* HWY_RESTRICT scores) {
  const F32 d;
  VF sums[kRows][kParts];
  for (auto& row : sums) {
    for (auto& part : row) part = hn::Zero(d);
  }
  for (std::int64_t j = 0; j < head_dim; ++j) {
    VF key[kParts];
    for (int p = 0; p < kParts; ++p) key[p] = load_float(keys + j * key_stride + p * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const VF query = hn::Set(d, queries[r * head_dim + j]);
      for (int p = 0; p < kParts; ++p) sums[r][p] = hn::MulAdd(query, key[p], sums[r][p]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kParts; ++p) hn::StoreU(sums[r][p], d, scores + r * kContextRun + p * kLanes);
  }
}

template <class T>
void score_rows(const T* keys, std::int64_t key_stride, std::int64_t head_dim, const Rows& rows, std::int64_t column) {
  std::int64_t r = 0;
  const auto queries = [&] { return rows.queries + r * head_dim; };
  const auto scores = [&] { return rows.scores + r * kContextRun + column; };
  for (; r + kRowBlock <= rows.num_rows; r += kRowBlock) {
    score_keys<T, kRowBlock>(keys, key_stride, head_dim, queries(), scores());
  }
  for (; r + 2 <= rows.num_rows; r += 2) score_keys<T, 2>(keys, key_stride, head_dim, queries(), scores());
  for (; r < rows.num_rows; ++r) score_keys<T, 1>(keys, key_stride, head_dim, queries(), scores());
}

/// Scores of a run become probabilities relative to the row's running maximum; hidden keys become 0.
void soften_row(const Rows& rows, std::int64_t row, Visible visible, std::int64_t run_begin) {
  const F32 d;
  float* scores = rows.scores + row * kContextRun;
  const std::int64_t from = std::clamp<std::int64_t>(visible.first - run_begin, 0, kContextRun);
  const std::int64_t to = std::clamp<std::int64_t>(visible.last - run_begin, 0, kContextRun);
  if (from >= to) {
    std::fill(scores, scores + kContextRun, 0.0f);
    rows.decay[row] = 1;
    return;
  }
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  std::fill(scores, scores + from, kHidden);
  std::fill(scores + to, scores + kContextRun, kHidden);
  auto largest = hn::Set(d, rows.maximum[row]);
  for (std::int64_t j = 0; j < kContextRun; j += kLanes) largest = hn::Max(largest, hn::LoadU(d, scores + j));
  const float maximum = hn::GetLane(hn::MaxOfLanes(d, largest));
  // exp(-inf) is not in the library's range; a floor far below any visible probability's exponent is, and gives 0.
  const auto floor = hn::Set(d, -200.0f);
  const auto shift = hn::Set(d, maximum);
  auto weight = hn::Zero(d);
  for (std::int64_t j = 0; j < kContextRun; j += kLanes) {
    const auto exponent = hn::Sub(hn::LoadU(d, scores + j), shift);
    const auto probability = hn::IfThenElse(hn::Lt(exponent, floor), hn::Zero(d), hn::Exp(d, exponent));
    hn::StoreU(probability, d, scores + j);
    weight = hn::Add(weight, probability);
  }
  const auto before = hn::Sub(hn::Set(d, rows.maximum[row]), shift);
  rows.decay[row] = hn::GetLane(hn::IfThenElse(hn::Lt(before, floor), hn::Zero(d), hn::Exp(d, before)));
  rows.weight[row] = rows.weight[row] * rows.decay[row] + hn::GetLane(hn::SumOfLanes(d, weight));
  rows.maximum[row] = maximum;
}

/// sums[row][dims] = sums * decay + sum_key p[row][key] * value[key][dims], keys in order, for kRows rows and
/// kVectors vectors of dims. `values_of(key)` is a key's value row.
template <class T, int kRows, int kVectors, class ValuesOf>
HWY_INLINE void mix_values(const Rows& rows, std::int64_t row, std::int64_t padded_dim, std::int64_t dim,
                           std::int64_t first_key, std::int64_t last_key, const ValuesOf& values_of) {
  const F32 d;
  VF sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    const VF decay = hn::Set(d, rows.decay[row + r]);
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = hn::Mul(decay, hn::LoadU(d, rows.sums + (row + r) * padded_dim + dim + v * kLanes));
    }
  }
  for (std::int64_t key = first_key; key < last_key; ++key) {
    const T* values = values_of(key) + dim;
    VF value[kVectors];
    for (int v = 0; v < kVectors; ++v) value[v] = load_float(values + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const VF p = hn::Set(d, rows.scores[(row + r) * kContextRun + key]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(p, value[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sums[r][v], d, rows.sums + (row + r) * padded_dim + dim + v * kLanes);
    }
  }
}

template <class T, int kRows, class ValuesOf>
HWY_INLINE void mix_row_block(const Rows& rows, std::int64_t row, std::int64_t padded_dim, std::int64_t first_key,
                              std::int64_t last_key, const ValuesOf& values_of) {
  std::int64_t dim = 0;
  for (; dim + kValueVectors * kLanes <= padded_dim; dim += kValueVectors * kLanes) {
    mix_values<T, kRows, kValueVectors>(rows, row, padded_dim, dim, first_key, last_key, values_of);
  }
  for (; dim < padded_dim; dim += kLanes) {
    mix_values<T, kRows, 1>(rows, row, padded_dim, dim, first_key, last_key, values_of);
  }
}

template <class T>
void attention_run(const AttentionTask& task, const HeadCache& cache, const Rows& rows, std::int64_t run_begin,
                   Visible keys) {
  const T* key_base = reinterpret_cast<const T*>(cache.keys);
  const T* value_base = reinterpret_cast<const T*>(cache.values);
  const std::int64_t first_key = std::max(keys.first, run_begin) - run_begin;
  const std::int64_t last_key = std::min(keys.last, run_begin + kContextRun) - run_begin;
  const auto block_of = [&](std::int64_t key) {
    return task.block_table[(run_begin + key) / cache.block_size] * cache.block_stride;
  };
  for (std::int64_t key = first_key / kKeyLanes * kKeyLanes; key < last_key; key += kKeyLanes) {
    const std::int64_t offset = (run_begin + key) % cache.block_size;
    score_rows(key_base + block_of(key) + offset, cache.block_size, cache.head_dim, rows, key);
  }
  for (std::int64_t r = 0; r < rows.num_rows; ++r) soften_row(rows, r, visible_keys(task, r), run_begin);
  const auto values_of = [&](std::int64_t key) {
    return value_base + block_of(key) + (run_begin + key) % cache.block_size * cache.padded_dim;
  };
  std::int64_t r = 0;
  for (; r + kValueRows <= rows.num_rows; r += kValueRows) {
    mix_row_block<T, kValueRows>(rows, r, cache.padded_dim, first_key, last_key, values_of);
  }
  for (; r < rows.num_rows; ++r) mix_row_block<T, 1>(rows, r, cache.padded_dim, first_key, last_key, values_of);
}

void attention_task(const AttentionTask& task, const HeadCache& cache, std::byte* scratch) {
  const std::int64_t num_rows = task.num_tokens * task.heads_per_kv;
  const std::int64_t head_dim = cache.head_dim;
  Rows rows{};
  rows.num_rows = num_rows;
  rows.queries = reinterpret_cast<float*>(scratch);
  rows.scores = rows.queries + num_rows * head_dim;
  rows.sums = rows.scores + num_rows * kContextRun;
  rows.maximum = rows.sums + num_rows * cache.padded_dim;
  rows.weight = rows.maximum + num_rows;
  rows.decay = rows.weight + num_rows;
  const float query_scale = task.scale * cache.key_scale * code_scale(cache.dtype);
  const float value_scale = cache.value_scale * code_scale(cache.dtype);
  for (std::int64_t r = 0; r < num_rows; ++r) {
    const float* query = task.queries + r / task.heads_per_kv * task.query_stride + r % task.heads_per_kv * head_dim;
    for (std::int64_t j = 0; j < head_dim; ++j) rows.queries[r * head_dim + j] = query[j] * query_scale;
    rows.maximum[r] = -1e30f;
    rows.weight[r] = 0;
  }
  std::fill(rows.sums, rows.sums + num_rows * cache.padded_dim, 0.0f);

  const Visible keys{visible_keys(task, 0).first, visible_keys(task, num_rows - 1).last};
  for (std::int64_t run = keys.first / kContextRun * kContextRun; run < keys.last; run += kContextRun) {
    switch (cache.dtype) {
      case DType::F16: attention_run<hwy::float16_t>(task, cache, rows, run, keys); break;
      case DType::F8E4M3: attention_run<CachedFp8>(task, cache, rows, run, keys); break;
      case DType::BF16: attention_run<hwy::bfloat16_t>(task, cache, rows, run, keys); break;
      default: attention_run<float>(task, cache, rows, run, keys); break;
    }
  }
  for (std::int64_t r = 0; r < num_rows; ++r) {
    float* out = task.out + r / task.heads_per_kv * task.out_stride + r % task.heads_per_kv * head_dim;
    const float inverse = value_scale / rows.weight[r];
    for (std::int64_t j = 0; j < head_dim; ++j) out[j] = rows.sums[r * cache.padded_dim + j] * inverse;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::backend::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::backend::cpu {

HWY_EXPORT(attention_task);

void attention_task(const AttentionTask& task, const HeadCache& cache, std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(attention_task)(task, cache, scratch);
}

std::size_t attention_scratch_bytes(std::int64_t num_rows, std::int64_t head_dim) {
  return static_cast<std::size_t>(num_rows * (2 * padded_head_dim(head_dim) + kContextRun + 3)) * sizeof(float);
}

}  // namespace nibble::backend::cpu
#endif  // HWY_ONCE
