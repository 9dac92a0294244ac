#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "sweep_cases.h"

namespace nibble::backend::test {

/// How much of a linear is looked at.
struct SweepExtent {
  std::span<const std::int64_t> token_counts;  // ascending
  bool is_whole = false;                       // all rows and tokens, with f32 activations too; else samples
};

inline constexpr std::int64_t kTokenCounts[] = {1,   2,   3,   4,   5,   7,   8,   9,   12,  15,   16,   17,
                                                24,  31,  32,  33,  48,  63,  64,  65,  96,  127,  128,  129,
                                                192, 255, 256, 257, 300, 511, 512, 513, 777, 1024, 2048, 4096};
inline constexpr std::int64_t kWholeCounts[] = {1, 2, 3, 5, 8, 9, 16, 17, 32, 33, 64, 100, 128, 200, 257};
inline constexpr std::int64_t kHeadCounts[] = {1, 2, 3, 8, 9, 16, 17, 33, 64, 65, 128, 256};
inline constexpr std::int64_t kSmallCounts[] = {1, 3, 8, 17, 33, 64, 100, 257};
inline constexpr SweepExtent kSampled{kTokenCounts}, kWhole{kWholeCounts, true}, kSampledHead{kHeadCounts},
    kSmallSampled{kSmallCounts}, kSmallWhole{kSmallCounts, false};

/// What was found in one linear or several.
struct LinearReport {
  std::int64_t num_products = 0;
  std::int64_t num_faults = 0;
  double worst = 0;  // error / bound
  std::string worst_at;
  double seconds = 0;

  void add(const LinearReport& other);
};

/// Runs linears and compares; prints the first faults of each. One thread calls it.
class Sweep {
 public:
  Sweep();
  LinearReport run(const FusedShape& shape, const Method& method, const SweepExtent& extent);
  double seconds() const;

 private:
  Activation& input(Backend& backend, const ActivationFormat& format, std::int64_t in_features);

  using Clock = std::chrono::steady_clock;
  Clock::time_point start_ = Clock::now();
  ThreadPool pool_;
  Noise noise_;
  Tensor tokens_;  // f16 [kMaxTokens, widest input]: rows of a narrower input follow one another in the same memory
  std::unique_ptr<Backend> fast_;
  std::unique_ptr<Backend> exact_;
  std::unique_ptr<Backend> rounding_;                                     // inputs of FP8 weights to E4M3
  std::map<std::pair<ActivationKind, std::int64_t>, Activation> inputs_;  // by format and in_features
};

}  // namespace nibble::backend::test
