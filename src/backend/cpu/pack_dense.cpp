#include "backend/cpu/pack_dense.h"

#include <cstring>
#include <utility>

#include "backend/cpu/kernels.h"

namespace nibble::backend::cpu {
namespace {

class DensePart final : public PackedPart {
 public:
  DensePart(DenseTiles tiles, Tensor bias) : tiles_(std::move(tiles)), bias_(std::move(bias)) {}

  std::int64_t out_features() const override { return tiles_.out_features; }
  std::int64_t size_bytes() const override {
    return static_cast<std::int64_t>(tiles_.values.size_bytes() + bias_.size_bytes());
  }
  std::size_t scratch_bytes() const override { return 0; }
  void run(const PartInput& x, std::int64_t first_tile, std::int64_t num_tiles, Matrix<float> y,
           std::byte*) const override {
    dense_tiles(tiles_, first_tile, num_tiles, x.floats,
                bias_.is_empty() ? std::span<const float>{} : bias_.span<float>(), y);
  }

 private:
  DenseTiles tiles_;
  Tensor bias_;
};

template <class T>
void transpose_tile(const T* rows, std::int64_t num_rows, std::int64_t in_features, T* tile) {
  for (std::int64_t k = 0; k < in_features; ++k) {
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      tile[k * kTileRows + r] = r < num_rows ? rows[r * in_features + k] : T{};
    }
  }
}

template <class T>
void pack_tiles(const weights::DenseWeights& weights, DenseTiles& tiles, ThreadPool& pool) {
  const T* source = static_cast<const T*>(weights.weight.view().data());
  T* target = static_cast<T*>(tiles.values.mutable_view().data());
  const std::int64_t tile_elements = kTileRows * tiles.in_features;
  pool.run(tiles.num_tiles(), [&](std::int64_t tile, int) {
    const std::int64_t num_rows = std::min(kTileRows, tiles.out_features - tile * kTileRows);
    transpose_tile(source + tile * tile_elements, num_rows, tiles.in_features, target + tile * tile_elements);
  });
}

}  // namespace

std::unique_ptr<PackedPart> pack_dense(const weights::DenseWeights& weights, const Tensor& bias, ThreadPool& pool) {
  DenseTiles tiles;
  tiles.out_features = weights.weight.shape()[0];
  tiles.in_features = weights.weight.shape()[1];
  tiles.dtype = weights.weight.dtype();
  check(tiles.dtype == DType::F32 || tiles.dtype == DType::F16 || tiles.dtype == DType::BF16,
        "dense weights are f32, f16 or bf16");
  tiles.values = Tensor::empty(tiles.dtype, {tiles.num_tiles(), tiles.in_features, kTileRows});
  prefer_huge_pages(tiles.values.mutable_view());
  if (tiles.dtype == DType::F32) {
    pack_tiles<std::uint32_t>(weights, tiles, pool);
  } else {
    pack_tiles<std::uint16_t>(weights, tiles, pool);
  }
  return std::make_unique<DensePart>(std::move(tiles), bias.is_empty() ? Tensor{} : Tensor::copy_of(bias));
}

}  // namespace nibble::backend::cpu
