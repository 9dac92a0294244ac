#include "backend/cpu/pack_fp8.h"

#include <algorithm>
#include <utility>

#include "backend/cpu/kernels.h"
#include "backend/host_ops.h"

namespace nibble::backend::cpu {
namespace {

class Fp8Part final : public PackedPart {
 public:
  Fp8Part(Fp8Tiles tiles, Tensor bias, const ActivationFormat& rounding)
      : tiles_(std::move(tiles)), bias_(std::move(bias)) {
    rounding_ = rounding;
  }

  std::int64_t out_features() const override { return tiles_.out_features; }
  std::int64_t size_bytes() const override {
    return static_cast<std::int64_t>(tiles_.codes.size_bytes() + tiles_.scales.size_bytes() + bias_.size_bytes());
  }
  std::size_t scratch_bytes() const override { return fp8_scratch_bytes(tiles_); }
  void run(const PartInput& x, std::int64_t first_tile, std::int64_t num_tiles, Matrix<float> y,
           std::byte* scratch) const override {
    fp8_tiles(tiles_, first_tile, num_tiles, x.floats,
              bias_.is_empty() ? std::span<const float>{} : bias_.span<float>(), y, scratch);
  }

 private:
  Fp8Tiles tiles_;
  Tensor bias_;
};

void transpose_tile(const std::uint8_t* rows, std::int64_t num_rows, std::int64_t in_features, std::uint8_t* tile) {
  // A cache line of every row before the next.
  constexpr std::int64_t kStep = 64;
  for (std::int64_t first = 0; first < in_features; first += kStep) {
    const std::int64_t end = std::min(in_features, first + kStep);
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      for (std::int64_t k = first; k < end; ++k) {
        tile[k * kTileRows + r] = r < num_rows ? rows[r * in_features + k] : std::uint8_t{0};
      }
    }
  }
}

Tensor pack_codes(const Tensor& weight, ThreadPool& pool) {
  const std::int64_t out_features = weight.shape()[0];
  const std::int64_t in_features = weight.shape()[1];
  const std::int64_t num_tiles = ceil_div(out_features, kTileRows);
  Tensor tiles = Tensor::empty(DType::F8E4M3, {num_tiles, in_features, kTileRows});
  prefer_huge_pages(tiles.mutable_view());
  const auto* source = static_cast<const std::uint8_t*>(weight.view().data());
  auto* target = static_cast<std::uint8_t*>(tiles.mutable_view().data());
  pool.run(num_tiles, [&](std::int64_t tile, int) {
    const std::int64_t num_rows = std::min(kTileRows, out_features - tile * kTileRows);
    transpose_tile(source + tile * kTileRows * in_features, num_rows, in_features,
                   target + tile * kTileRows * in_features);
  });
  return tiles;
}

/// Times 2^8, which the codes lack as the kernel reads them. A power of two: exact.
Tensor pack_scales(const weights::Fp8Weights& w) {
  const auto scales = w.scale.span<float>();
  Tensor packed = Tensor::zeros(
      DType::F32, w.block_size > 0 ? w.scale.shape() : Shape{ceil_div(w.weight.shape()[0], kTileRows) * kTileRows});
  const auto target = packed.span<float>();
  const std::size_t count = w.block_size > 0 ? target.size() : static_cast<std::size_t>(w.weight.shape()[0]);
  for (std::size_t i = 0; i < count; ++i) target[i] = scales[scales.size() == 1 ? 0 : i] * kFp8CodeScale;
  return packed;
}

}  // namespace

std::unique_ptr<PackedPart> pack_fp8(const weights::Fp8Weights& weights, const Tensor& bias, Fp8Activations activations,
                                     ThreadPool& pool) {
  if (weights.block_size % kTileRows != 0) return nullptr;
  Fp8Tiles tiles;
  tiles.out_features = weights.weight.shape()[0];
  tiles.in_features = weights.weight.shape()[1];
  tiles.block_size = weights.block_size;
  tiles.codes = pack_codes(weights.weight, pool);
  tiles.scales = pack_scales(weights);
  const ActivationFormat rounding =
      activations == Fp8Activations::Rounded ? fp8_input_format(weights) : ActivationFormat{};
  return std::make_unique<Fp8Part>(std::move(tiles), bias.is_empty() ? Tensor{} : Tensor::copy_of(bias), rounding);
}

}  // namespace nibble::backend::cpu
