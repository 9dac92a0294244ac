#pragma once

#include <cmath>
#include <cstdint>

/// Order statistics of one row of scores by one thread block, without sorting it: which token stands at a rank, or
/// where the probability mass of better tokens reaches a limit.
///
/// Masses are exp(score - max) as integers, 2^44 for the best token: their sums are exact, so results depend neither on
/// the order of threads nor on the run. The rest below 2^-44 is left out, at most 1e-8 of the whole for 128k tokens.
///
/// Tokens are ordered by falling score, ties by id: the order of falling composites (key of the score, complement of
/// the id), which are all different. A histogram of 2048 bins over max - score finds the bin in question; its few
/// tokens are collected and sorted. Where they are too many, the bin is divided again by key, until they fit or all are
/// ties, which are counted by id.
namespace nibble::backend::cuda {

inline constexpr int kSelectThreads = 1024;
inline constexpr int kSelectWarps = kSelectThreads / 32;
inline constexpr int kBins = 2 * kSelectThreads;
inline constexpr int kMaxCollected = 2 * kSelectThreads;
inline constexpr float kBinsPerUnit = 64;             // of score: the last bin takes whatever is 32 below the best
inline constexpr double kMassOne = 17592186044416.0;  // 2^44: sums of 2^19 fit
inline constexpr float kNoMass = -31;                 // scores further below the best have no mass

struct SelectStorage {
  std::uint64_t mass[kBins];  // of the bin and those before, as `count`
  std::uint64_t collected[kMaxCollected];
  std::uint32_t count[kBins];
  std::uint64_t scan[kSelectWarps];
  std::uint64_t found[4];
  std::uint32_t num_collected;
  std::uint32_t key_low;
  std::uint32_t key_high;
  float score;
};

// ── Keys ───────────────────────────────────────────────────────────────────────────────────────────────────

/// Ascending with the score; both zeros are one.
__device__ inline std::uint32_t key_of(float score) {
  const std::uint32_t bits = __float_as_uint(__fadd_rn(score, 0.0F));
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float score_of_key(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
__device__ inline std::uint64_t composite_of(float score, std::int32_t token) {
  return std::uint64_t{key_of(score)} << 32 | ~static_cast<std::uint32_t>(token);
}
__device__ inline std::uint32_t key_of_composite(std::uint64_t composite) {
  return static_cast<std::uint32_t>(composite >> 32);
}
__device__ inline std::int32_t token_of_composite(std::uint64_t composite) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(composite));
}

/// below: score - max.
__device__ inline std::uint64_t mass_of(float below) {
  if (!(below > kNoMass)) return 0;
  return static_cast<std::uint64_t>(exp(static_cast<double>(below)) * kMassOne);
}

// ── Over the block; every thread calls them, with a barrier at the end ─────────────────────────────────────

__device__ inline std::uint64_t block_max(std::uint64_t value, SelectStorage& shared) {
  for (int offset = 16; offset > 0; offset /= 2) value = max(value, __shfl_xor_sync(0xffffffff, value, offset));
  if (threadIdx.x % 32 == 0) shared.scan[threadIdx.x / 32] = value;
  __syncthreads();
  for (int w = 0; w < kSelectWarps; ++w) value = max(value, shared.scan[w]);
  __syncthreads();
  return value;
}

/// Sum over the threads before and this one.
__device__ inline std::uint64_t block_inclusive_sum(std::uint64_t value, SelectStorage& shared) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  for (int offset = 1; offset < 32; offset *= 2) {
    const std::uint64_t other = __shfl_up_sync(0xffffffff, value, offset);
    if (lane >= offset) value += other;
  }
  if (lane == 31) shared.scan[warp] = value;
  __syncthreads();
  for (int w = 0; w < warp; ++w) value += shared.scan[w];
  __syncthreads();
  return value;
}

/// Falling order of shared.collected[0, size).
__device__ inline void sort_collected(std::uint32_t size, SelectStorage& shared) {
  std::uint32_t padded = 2;
  while (padded < size) padded *= 2;
  for (std::uint32_t i = size + threadIdx.x; i < padded; i += kSelectThreads) shared.collected[i] = 0;
  __syncthreads();
  for (std::uint32_t run = 2; run <= padded; run *= 2) {  // bitonic
    for (std::uint32_t distance = run / 2; distance > 0; distance /= 2) {
      for (std::uint32_t i = threadIdx.x; i < padded; i += kSelectThreads) {
        const std::uint32_t j = i ^ distance;
        if (j <= i) continue;
        const std::uint64_t a = shared.collected[i];
        const std::uint64_t b = shared.collected[j];
        const bool falls = (i & run) == 0;
        if ((a < b) == falls) {
          shared.collected[i] = b;
          shared.collected[j] = a;
        }
      }
      __syncthreads();
    }
  }
}

/// The first token, by id, at which the sum of weights exceeds target(total). weight(token) is a u64.
template <class Weight, class Target>
__device__ std::int32_t first_by_id(std::int64_t vocab_size, Weight weight, Target target_of, SelectStorage& shared) {
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // A stretch of ids a warp; the stretch in which it happens is divided among all threads.
  const std::int64_t stretch = (vocab_size + kSelectThreads - 1) / kSelectThreads * 32;
  std::uint64_t sum = 0;
  for (std::int64_t token = warp * stretch + lane; token < min((warp + 1) * stretch, vocab_size); token += 32) {
    sum += weight(token);
  }
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
  if (lane == 0) shared.scan[warp] = sum;
  if (threadIdx.x == 0) shared.found[0] = 0;
  __syncthreads();
  std::uint64_t total = 0;
  for (int w = 0; w < kSelectWarps; ++w) total += shared.scan[w];
  const std::uint64_t target = target_of(total);
  std::uint64_t before = 0;
  int crossing = 0;
  while (crossing < kSelectWarps - 1 && before + shared.scan[crossing] <= target) before += shared.scan[crossing++];
  __syncthreads();

  const std::int64_t per_thread = (stretch + kSelectThreads - 1) / kSelectThreads;
  const std::int64_t first = crossing * stretch + threadIdx.x * per_thread;
  const std::int64_t end = min(min(first + per_thread, (crossing + 1) * stretch), vocab_size);
  sum = 0;
  for (std::int64_t token = first; token < end; ++token) sum += weight(token);
  const std::uint64_t up_to = before + block_inclusive_sum(sum, shared);
  if (up_to > target && up_to - sum <= target) {
    std::uint64_t reached = up_to - sum;
    for (std::int64_t token = first; token < end; ++token) {
      reached += weight(token);
      if (reached <= target) continue;
      shared.found[0] = static_cast<std::uint64_t>(token);
      break;
    }
  }
  __syncthreads();
  const auto token = static_cast<std::int32_t>(shared.found[0]);
  __syncthreads();
  return token;
}

/// Each token with its probability, in order of ids. random_bits: a fraction of 2^64.
template <class Scores>
__device__ std::int32_t draw_by_id(const Scores& scores, std::int64_t vocab_size, float max_score,
                                   std::uint64_t random_bits, SelectStorage& shared) {
  return first_by_id(
      vocab_size, [&](std::int64_t token) { return mass_of(__fsub_rn(scores(token), max_score)); },
      [&](std::uint64_t total) { return __umul64hi(random_bits, total); }, shared);
}

// ── Selection ──────────────────────────────────────────────────────────────────────────────────────────────

/// A token in best-first order.
struct Selected {
  std::uint64_t composite = 0;
  std::uint64_t mass_up_to = 0;  // of better tokens and this one
};

/// Answers questions about one row. scores(token): -infinity for tokens that do not take part; max_score: the best.
template <class Scores>
class Selector {
 public:
  __device__ Selector(const Scores& scores, std::int64_t vocab_size, float max_score, SelectStorage& shared)
      : scores_(scores), vocab_size_(vocab_size), max_score_(max_score), shared_(shared) {
    count_bins();
    total_count_ = shared_.count[kBins - 1];
    total_mass_ = shared_.mass[kBins - 1];
  }

  __device__ std::uint32_t total_count() const { return total_count_; }
  __device__ std::uint64_t total_mass() const { return total_mass_; }

  /// The token with `rank` better ones; rank < total_count.
  __device__ Selected by_count(std::uint32_t rank) { return find<false>(rank); }
  /// The first token whose mass_up_to exceeds `limit`; limit < total_mass.
  __device__ Selected by_mass(std::uint64_t limit) { return find<true>(limit); }

  /// All composites down to `last`, falling; at most kMaxCollected. In shared memory until the next question.
  __device__ const std::uint64_t* sorted_down_to(std::uint64_t last) {
    const std::uint32_t size = collect([&](std::uint64_t composite, float) { return composite >= last; });
    sort_collected(size, shared_);
    return shared_.collected;
  }

 private:
  /// What is left to search: tokens with low <= key <= high, and what is better than all of them.
  struct Range {
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    std::uint32_t count = 0;
    std::uint64_t count_before = 0;
    std::uint64_t mass_before = 0;
  };

  __device__ static int bin_of(float below) {
    return static_cast<int>(fminf(__fmul_rn(-below, kBinsPerUnit), static_cast<float>(kBins - 1)));
  }

  /// Calls use(composite, score - max) for every token that takes part.
  template <class Use>
  __device__ void for_each(Use use) {
    for (std::int64_t token = threadIdx.x; token < vocab_size_; token += kSelectThreads) {
      const float score = scores_(token);
      if (score > -INFINITY) use(composite_of(score, static_cast<std::int32_t>(token)), __fsub_rn(score, max_score_));
    }
  }

  /// Counts and masses of bins, each with those before. bin(composite, below) is -1 for tokens left out.
  template <class Bin>
  __device__ void count_bins_by(Bin bin) {
    for (int b = threadIdx.x; b < kBins; b += kSelectThreads) {
      shared_.count[b] = 0;
      shared_.mass[b] = 0;
    }
    __syncthreads();
    for_each([&](std::uint64_t composite, float below) {
      const int b = bin(composite, below);
      if (b < 0) return;
      atomicAdd(&shared_.count[b], 1u);
      const std::uint64_t mass = mass_of(below);
      if (mass > 0) atomicAdd(reinterpret_cast<unsigned long long*>(&shared_.mass[b]), mass);
    });
    __syncthreads();
    const int first = 2 * threadIdx.x;
    const std::uint32_t count = shared_.count[first] + shared_.count[first + 1];
    const std::uint64_t mass = shared_.mass[first] + shared_.mass[first + 1];
    const std::uint64_t count_up_to = block_inclusive_sum(count, shared_);
    const std::uint64_t mass_up_to = block_inclusive_sum(mass, shared_);
    const std::uint32_t second_count = shared_.count[first + 1];
    const std::uint64_t second_mass = shared_.mass[first + 1];
    shared_.count[first] = static_cast<std::uint32_t>(count_up_to) - second_count;
    shared_.count[first + 1] = static_cast<std::uint32_t>(count_up_to);
    shared_.mass[first] = mass_up_to - second_mass;
    shared_.mass[first + 1] = mass_up_to;
    __syncthreads();
  }

  __device__ void count_bins() {
    count_bins_by([](std::uint64_t, float below) { return bin_of(below); });
    has_bins_ = true;
  }

  /// The first bin where counts (or masses), added to what is before, exceed the limit; its counts into range.
  template <bool kByMass>
  __device__ int find_bin(std::uint64_t limit, Range& range) {
    if (threadIdx.x == 0) shared_.found[0] = kBins - 1;
    __syncthreads();
    for (int b = threadIdx.x; b < kBins; b += kSelectThreads) {
      const std::uint64_t up_to = value<kByMass>(b) + (kByMass ? range.mass_before : range.count_before);
      const std::uint64_t before =
          (b > 0 ? value<kByMass>(b - 1) : 0) + (kByMass ? range.mass_before : range.count_before);
      if (up_to > limit && before <= limit) shared_.found[0] = static_cast<std::uint64_t>(b);
    }
    __syncthreads();
    const int bin = static_cast<int>(shared_.found[0]);
    const std::uint32_t count_before = bin > 0 ? shared_.count[bin - 1] : 0;
    range.count = shared_.count[bin] - count_before;
    range.count_before += count_before;
    range.mass_before += bin > 0 ? shared_.mass[bin - 1] : 0;
    __syncthreads();
    return bin;
  }
  template <bool kByMass>
  __device__ std::uint64_t value(int bin) const {
    if constexpr (kByMass) return shared_.mass[bin];
    return shared_.count[bin];
  }

  /// Gathers the composites that `takes` wants, in any order; how many.
  template <class Takes>
  __device__ std::uint32_t collect(Takes takes) {
    if (threadIdx.x == 0) shared_.num_collected = 0;
    __syncthreads();
    for_each([&](std::uint64_t composite, float below) {
      if (!takes(composite, below)) return;
      const std::uint32_t place = atomicAdd(&shared_.num_collected, 1u);
      if (place < kMaxCollected) shared_.collected[place] = composite;
    });
    __syncthreads();
    return min(shared_.num_collected, static_cast<std::uint32_t>(kMaxCollected));
  }

  template <bool kByMass>
  __device__ Selected find(std::uint64_t limit) {
    if (!has_bins_) count_bins();
    Range range;
    const int bin = find_bin<kByMass>(limit, range);
    if (range.count <= kMaxCollected) {
      const std::uint32_t size = collect([&](std::uint64_t, float below) { return bin_of(below) == bin; });
      return find_collected<kByMass>(limit, size, range);
    }
    find_keys(bin, range);
    while (range.count > kMaxCollected && range.low < range.high) divide<kByMass>(limit, range);
    if (range.count > kMaxCollected) return find_tie<kByMass>(limit, range);
    const std::uint32_t size = collect([&](std::uint64_t composite, float) {
      return key_of_composite(composite) >= range.low && key_of_composite(composite) <= range.high;
    });
    return find_collected<kByMass>(limit, size, range);
  }

  /// Among the collected, which are all that is left.
  template <bool kByMass>
  __device__ Selected find_collected(std::uint64_t limit, std::uint32_t size, const Range& range) {
    sort_collected(size, shared_);
    const std::uint32_t first = 2 * threadIdx.x;
    std::uint64_t mass[2] = {0, 0};
    for (std::uint32_t i = 0; i < 2; ++i) {
      if (first + i < size) mass[i] = mass_of_composite(shared_.collected[first + i]);
    }
    std::uint64_t reached = range.mass_before + block_inclusive_sum(mass[0] + mass[1], shared_) - mass[0] - mass[1];
    for (std::uint32_t i = 0; i < 2; ++i) {
      const std::uint64_t before = kByMass ? reached : range.count_before + first + i;
      reached += mass[i];
      const std::uint64_t up_to = kByMass ? reached : before + 1;
      if (first + i < size && up_to > limit && before <= limit) {
        shared_.found[0] = shared_.collected[first + i];
        shared_.found[1] = reached;
      }
    }
    __syncthreads();
    const Selected selected{shared_.found[0], shared_.found[1]};
    __syncthreads();
    return selected;
  }

  __device__ std::uint64_t mass_of_composite(std::uint64_t composite) const {
    return mass_of(__fsub_rn(score_of_key(key_of_composite(composite)), max_score_));
  }

  /// The keys in a bin.
  __device__ void find_keys(int bin, Range& range) {
    if (threadIdx.x == 0) {
      shared_.key_low = 0xffffffffu;
      shared_.key_high = 0;
    }
    __syncthreads();
    std::uint32_t low = 0xffffffffu;
    std::uint32_t high = 0;
    for_each([&](std::uint64_t composite, float below) {
      if (bin_of(below) != bin) return;
      low = min(low, key_of_composite(composite));
      high = max(high, key_of_composite(composite));
    });
    atomicMin(&shared_.key_low, low);
    atomicMax(&shared_.key_high, high);
    __syncthreads();
    range.low = shared_.key_low;
    range.high = shared_.key_high;
    __syncthreads();
  }

  /// The part of a range that holds the answer.
  template <bool kByMass>
  __device__ void divide(std::uint64_t limit, Range& range) {
    const int width = 32 - __clz(static_cast<int>(range.high - range.low));
    const int shift = max(0, width - 11);  // 2^11 bins
    has_bins_ = false;
    count_bins_by([&](std::uint64_t composite, float) {
      const std::uint32_t key = key_of_composite(composite);
      return key >= range.low && key <= range.high ? static_cast<int>((range.high - key) >> shift) : -1;
    });
    const auto bin = static_cast<std::uint32_t>(find_bin<kByMass>(limit, range));
    range.high -= bin << shift;
    range.low = max(range.low, range.high - ((1u << shift) - 1));
  }

  /// All that is left has one score.
  template <bool kByMass>
  __device__ Selected find_tie(std::uint64_t limit, const Range& range) {
    const float score = score_of_key(range.low);
    const std::uint64_t mass = mass_of(__fsub_rn(score, max_score_));
    const std::uint64_t rank =
        kByMass ? (limit - range.mass_before) / max(mass, std::uint64_t{1}) : limit - range.count_before;
    const std::int32_t token = first_by_id(
        vocab_size_,
        [&](std::int64_t t) {
          const float other = scores_(t);
          return std::uint64_t{other > -INFINITY && key_of(other) == range.low ? 1u : 0u};
        },
        [&](std::uint64_t) { return rank; }, shared_);
    return {composite_of(score, token), range.mass_before + (rank + 1) * mass};
  }

  const Scores& scores_;
  std::int64_t vocab_size_;
  float max_score_;
  SelectStorage& shared_;
  std::uint32_t total_count_ = 0;
  std::uint64_t total_mass_ = 0;
  bool has_bins_ = false;
};

}  // namespace nibble::backend::cuda
