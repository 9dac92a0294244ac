#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "weights/linear_weights.h"

/// What the sweep multiplies: linears of real models, by every method.
namespace nibble::backend::test {

/// A fused linear as the loader makes it: parts that share their input.
struct FusedShape {
  std::string name;  // "llama-2-7b qkv"
  std::int64_t in_features = 0;
  std::vector<std::int64_t> out_features;  // of each part
};

/// All linear shapes of Llama-2 7B/13B/70B, Llama-3 8B, Mixtral and SmolLM2.
std::vector<FusedShape> model_shapes();
/// lm_head, which is dense in all of them.
std::vector<FusedShape> head_shapes();
/// Sizes that no tile divides, and small ones: every method takes those that its groups divide.
std::vector<FusedShape> odd_shapes();
/// Six shapes that are checked whole.
std::vector<FusedShape> whole_shapes();

/// Random numbers in bulk, made once: weights of gigabytes borrow pieces of them.
class Noise {
 public:
  explicit Noise(ThreadPool& pool);
  /// Any bytes.
  Tensor bytes(DType dtype, Shape shape);
  /// f16 of magnitudes from 2^-6 to 2^-5, both signs.
  Tensor halves(Shape shape);
  /// E4M3 without its two NaN.
  Tensor e4m3(Shape shape);
  std::uint32_t next();

 private:
  Tensor take(const Tensor& pool, DType dtype, const Shape& shape);

  Tensor bytes_;   // u8
  Tensor halves_;  // f16
  Tensor e4m3_;
  std::uint64_t state_ = 1;
};

inline constexpr std::int64_t kWholeRow = std::int64_t{1} << 40;

/// A way of storing weights, and what becomes of the inputs.
struct Method {
  std::string name;
  /// Multiples of this divide the inputs of what it takes.
  std::int64_t group_size = 1;
  /// Inputs are rounded to E4M3, so many sharing a scale (W8A8); 0: they stay f16.
  std::int64_t rounded_run = 0;
  std::function<weights::LinearWeights(std::int64_t out_features, std::int64_t in_features, Noise& noise)> make;
};

std::vector<Method> sweep_methods();

}  // namespace nibble::backend::test
