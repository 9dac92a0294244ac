#include "backend/cpu/pack_codebook.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "backend/cpu/kernels.h"

namespace nibble::backend::cpu {
namespace {

class CodebookPart final : public PackedPart {
 public:
  CodebookPart(CodebookTiles tiles, Tensor bias) : tiles_(std::move(tiles)), bias_(std::move(bias)) {}

  std::int64_t out_features() const override { return tiles_.out_features; }
  std::int64_t size_bytes() const override {
    return tiles_.size_bytes() + static_cast<std::int64_t>(bias_.size_bytes());
  }
  std::size_t scratch_bytes() const override { return codebook_scratch_bytes(tiles_); }
  void run(const PartInput& x, std::int64_t first_tile, std::int64_t num_tiles, Matrix<float> y,
           std::byte* scratch) const override {
    codebook_tiles(tiles_, first_tile, num_tiles, x.floats,
                   bias_.is_empty() ? std::span<const float>{} : bias_.span<float>(), y, scratch);
  }

 private:
  CodebookTiles tiles_;
  Tensor bias_;
};

/// One row's codes into its blocks, which are zeroed and lie kCodebookRows * 64 bytes apart.
void pack_row(std::span<const std::uint8_t> codes, std::int32_t bits, std::uint8_t* to) {
  const auto lanes = static_cast<std::size_t>(kTileRows);
  const std::size_t inputs_of_block = lanes * static_cast<std::size_t>(codebook_steps(bits));
  for (std::size_t k = 0; k < codes.size(); ++k) {
    const std::size_t block = k / inputs_of_block;
    const std::size_t step = k % inputs_of_block / lanes;
    std::uint8_t* at = to + block * static_cast<std::size_t>(kCodebookRows) * 64 + k % lanes * sizeof(std::uint32_t);
    std::uint32_t word;
    std::memcpy(&word, at, sizeof(word));
    word |= static_cast<std::uint32_t>(codes[k]) << (step * static_cast<std::size_t>(bits));
    std::memcpy(at, &word, sizeof(word));
  }
}

void pack_codes(const weights::CodebookWeights& w, CodebookTiles& tiles, ThreadPool& pool) {
  const std::int64_t num_groups = tiles.num_tiles() * kTileRows / kCodebookRows;
  tiles.codes = Tensor::empty(DType::U8, {num_groups, tiles.group_bytes()});
  prefer_huge_pages(tiles.codes.mutable_view());
  const auto packed = w.codes.matrix<std::uint8_t>();
  pool.run(num_groups, [&](std::int64_t group, int) {
    std::uint8_t* to = tiles.codes.matrix<std::uint8_t>().row(group);
    std::memset(to, 0, static_cast<std::size_t>(tiles.group_bytes()));
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(w.in_features));
    for (std::int64_t r = 0; r < std::min(kCodebookRows, w.out_features - group * kCodebookRows); ++r) {
      weights::unpack_codes(packed.row_span(group * kCodebookRows + r), w.bits, codes);
      pack_row(codes, w.bits, to + r * 64);
    }
  });
}

template <class T>
void pack_tables(const weights::CodebookWeights& w, CodebookTiles& tiles) {
  tiles.tables = Tensor::zeros(*dtype_of<T>, {tiles.num_tiles() * kTileRows, kTileRows});
  const auto from = w.lookup_table.matrix<T>();
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    T* to = tiles.tables.template matrix<T>().row(o);
    for (std::int64_t c = 0; c < kTileRows; ++c) to[c] = from.row(o)[c % from.cols];
  }
}

}  // namespace

std::unique_ptr<PackedPart> pack_codebook(const weights::CodebookWeights& weights, const Tensor& bias,
                                          ThreadPool& pool) {
  CodebookTiles tiles;
  tiles.out_features = weights.out_features;
  tiles.in_features = weights.in_features;
  tiles.bits = weights.bits;
  pack_codes(weights, tiles, pool);
  if (weights.lookup_table.dtype() == DType::F16) {
    pack_tables<Half>(weights, tiles);
  } else {
    pack_tables<float>(weights, tiles);
  }
  if (weights.vals.num_elements() > 0) {
    tiles.rows = Tensor::copy_of(weights.rows);
    tiles.cols = Tensor::copy_of(weights.cols);
    tiles.vals = Tensor::copy_of(weights.vals);
  }
  return std::make_unique<CodebookPart>(std::move(tiles), bias.is_empty() ? Tensor{} : Tensor::copy_of(bias));
}

}  // namespace nibble::backend::cpu
