#include "backend/cpu/pack_grouped_int.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "backend/cpu/kernels.h"
#include "core/log.h"

namespace nibble::backend::cpu {
namespace {

class IntPart final : public PackedPart {
 public:
  IntPart(IntTiles tiles, Tensor bias, std::vector<std::int32_t> permutation)
      : tiles_(std::move(tiles)), bias_(std::move(bias)) {
    permutation_ = std::move(permutation);
    activation_group_ = tiles_.activation_group;
  }

  std::int64_t out_features() const override { return tiles_.out_features; }
  std::int64_t size_bytes() const override {
    return tiles_.size_bytes() + static_cast<std::int64_t>(bias_.size_bytes());
  }
  std::size_t scratch_bytes() const override {
    return activation_group_ > 0 ? int_scratch_bytes(tiles_) : int_exact_scratch_bytes(tiles_);
  }
  void run(const PartInput& x, std::int64_t first_tile, std::int64_t num_tiles, Matrix<float> y,
           std::byte* scratch) const override {
    const std::span<const float> bias = bias_.is_empty() ? std::span<const float>{} : bias_.span<float>();
    if (activation_group_ > 0) {
      int_tiles(tiles_, first_tile, num_tiles, x.integers, bias, y, scratch);
    } else {
      int_tiles_exact(tiles_, first_tile, num_tiles, x.floats, bias, y, scratch);
    }
  }

 private:
  IntTiles tiles_;
  Tensor bias_;
};

/// Input channels ordered by group, stable; empty when they already are.
std::vector<std::int32_t> order_by_group(const weights::GroupedIntWeights& w) {
  if (!w.has_g_idx()) return {};
  const auto g_idx = w.g_idx.span<std::int32_t>();
  if (std::ranges::is_sorted(g_idx)) return {};
  std::vector<std::int32_t> order(g_idx.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](std::int32_t channel) { return g_idx[static_cast<std::size_t>(channel)]; });
  return order;
}

std::vector<GroupSegment> segments_of(const weights::GroupedIntWeights& w, std::span<const std::int32_t> order) {
  std::vector<GroupSegment> segments;
  for (std::int64_t k = 0; k < w.in_features; ++k) {
    const auto channel =
        order.empty() ? static_cast<std::size_t>(k) : static_cast<std::size_t>(order[static_cast<std::size_t>(k)]);
    const std::int64_t group =
        w.has_g_idx() ? w.g_idx.span<std::int32_t>()[channel] : (w.first_group_offset + k) / w.group_size;
    if (segments.empty() || segments.back().group != group) segments.push_back({k, k, group});
    segments.back().end = k + 1;
  }
  return segments;
}

/// The largest of 128, 64, 32 up to kMaxActivationGroup that divides every segment; 0 where none does.
std::int64_t activation_group_of(std::span<const GroupSegment> segments) {
  for (std::int64_t group = kMaxActivationGroup; group >= kChunk; group /= 2) {
    const bool divides = std::ranges::all_of(
        segments, [&](const GroupSegment& s) { return s.begin % group == 0 && s.end % group == 0; });
    if (divides) return group;
  }
  return 0;
}

void warn_about_f32_activations(const weights::GroupedIntWeights& w) {
  static std::atomic_flag warned;
  if (warned.test_and_set()) return;
  log::warning(
      "int{} weights [{}, {}] in groups of {}: groups that do not begin and end at multiples of {} inputs run with f32 "
      "activations, which is slower",
      w.bits, w.out_features, w.in_features, w.group_size, kChunk);
}

/// Puts a step's four codes of one row, a byte each in `quad`, into a zeroed chunk (layout.h, IntTiles).
void put_step(std::uint8_t* chunk, std::int32_t bits, std::int64_t row, std::int64_t step, std::uint32_t quad) {
  const auto merge = [&](std::int64_t block, std::uint32_t value) {
    std::uint8_t* at = chunk + block * 64 + row * 4;
    std::uint32_t present;
    std::memcpy(&present, at, sizeof(present));
    present |= value;
    std::memcpy(at, &present, sizeof(present));
  };
  switch (bits) {
    case 8: return merge(step, quad);
    case 4: return merge(step / 2, quad << (step % 2 * 4));
    case 3: merge(2, ((quad >> 2) & 0x01010101u) << step); [[fallthrough]];
    default: return merge(step / 4, (quad & 0x03030303u) << (step % 4 * 2));
  }
}

/// Codes of a tile's 16 rows, a byte each, inputs padded to whole chunks; zero where nothing is put.
class CodeRows {
 public:
  explicit CodeRows(const IntTiles& tiles)
      : stride_(tiles.num_chunks() * kChunk), codes_(static_cast<std::size_t>(kTileRows * stride_)) {}
  std::span<std::uint8_t> row(std::int64_t r, std::int64_t in_features) {
    return std::span(codes_).subspan(static_cast<std::size_t>(r * stride_), static_cast<std::size_t>(in_features));
  }
  void pack(const IntTiles& tiles, std::uint8_t* to) const {
    std::memset(to, 0, static_cast<std::size_t>(tiles.tile_bytes()));
    for (std::int64_t c = 0; c < tiles.num_chunks(); ++c, to += tiles.chunk_bytes()) {
      for (std::int64_t r = 0; r < kTileRows; ++r) {
        for (std::int64_t step = 0; step < kChunk / 4; ++step) {
          std::uint32_t quad;
          std::memcpy(&quad, &codes_[static_cast<std::size_t>(r * stride_ + c * kChunk + step * 4)], sizeof(quad));
          put_step(to, tiles.bits, r, step, quad);
        }
      }
    }
  }

 private:
  std::int64_t stride_;
  std::vector<std::uint8_t> codes_;
};

bool all_zeros_central(const weights::GroupedIntWeights& w) {
  const auto middle = static_cast<std::int16_t>(1 << (w.bits - 1));
  return std::ranges::all_of(w.zeros.span<std::int16_t>(), [&](std::int16_t zero) { return zero == middle; });
}

/// Scales as f16 where they are or every value survives the conversion, else f32: [num_tiles, num_groups, 16].
Tensor pack_scales(const weights::GroupedIntWeights& w, const IntTiles& tiles) {
  const Tensor scales = to_dtype(w.scales, DType::F32);
  const auto rows = scales.matrix<float>();
  const auto values = scales.span<float>();
  const bool fits_half = w.scales.dtype() == DType::F16 ||
                         std::ranges::all_of(values, [](float value) { return to_float(to_half(value)) == value; });
  Tensor packed = Tensor::zeros(fits_half ? DType::F16 : DType::F32, {tiles.num_tiles(), tiles.num_groups, kTileRows});
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    for (std::int64_t g = 0; g < tiles.num_groups; ++g) {
      const auto at = static_cast<std::size_t>((o / kTileRows * tiles.num_groups + g) * kTileRows + o % kTileRows);
      if (fits_half) {
        packed.span<Half>()[at] = to_half(rows.row(o)[g]);
      } else {
        packed.span<float>()[at] = rows.row(o)[g];
      }
    }
  }
  return packed;
}

template <class T>
Tensor pack_zeros(const weights::GroupedIntWeights& w, const IntTiles& tiles) {
  Tensor packed = Tensor::zeros(*dtype_of<T>, {tiles.num_tiles(), tiles.num_groups, kTileRows});
  const auto rows = w.zeros.matrix<std::int16_t>();
  const auto target = packed.span<T>();
  for (std::int64_t o = 0; o < w.out_features; ++o) {
    for (std::int64_t g = 0; g < tiles.num_groups; ++g) {
      target[static_cast<std::size_t>((o / kTileRows * tiles.num_groups + g) * kTileRows + o % kTileRows)] =
          static_cast<T>(rows.row(o)[g]);
    }
  }
  return packed;
}

void pack_codes(const weights::GroupedIntWeights& w, std::span<const std::int32_t> order, IntTiles& tiles,
                ThreadPool& pool) {
  tiles.codes = Tensor::empty(DType::U8, {tiles.num_tiles(), tiles.tile_bytes()});
  prefer_huge_pages(tiles.codes.mutable_view());
  const auto packed = w.codes.matrix<std::uint8_t>();
  const auto in = static_cast<std::size_t>(w.in_features);
  pool.run(tiles.num_tiles(), [&](std::int64_t tile, int) {
    CodeRows rows(tiles);
    std::vector<std::uint8_t> natural(order.empty() ? 0 : in);
    for (std::int64_t r = 0; r < std::min(kTileRows, w.out_features - tile * kTileRows); ++r) {
      const std::span<std::uint8_t> row = rows.row(r, w.in_features);
      weights::unpack_codes(packed.row_span(tile * kTileRows + r), w.bits, order.empty() ? row : std::span(natural));
      for (std::size_t k = 0; k < order.size(); ++k) row[k] = natural[static_cast<std::size_t>(order[k])];
    }
    rows.pack(tiles, tiles.codes.matrix<std::uint8_t>().row(tile));
  });
}

/// One row of a dense matrix at 8 bits: scale = absmax / 127 per group as f16, codes 1 … 255 around 128.
void quantize_row_to_8_bits(std::span<const float> row, std::int64_t group_size, std::uint8_t* codes, Half* scales,
                            std::int64_t scale_stride) {
  for (std::size_t g = 0; g * static_cast<std::size_t>(group_size) < row.size(); ++g) {
    const auto group = row.subspan(g * static_cast<std::size_t>(group_size), static_cast<std::size_t>(group_size));
    float absmax = 0;
    for (const float value : group) absmax = std::max(absmax, std::abs(value));
    const Half scale = to_half(absmax / 127.0f);
    const float inverse = to_float(scale) > 0 ? 1.0f / to_float(scale) : 0.0f;
    for (std::size_t i = 0; i < group.size(); ++i) {
      // A scale that rounded down would carry the largest value past 127.
      const float code = std::clamp(std::nearbyint(group[i] * inverse), -127.0f, 127.0f);
      codes[g * static_cast<std::size_t>(group_size) + i] = static_cast<std::uint8_t>(static_cast<int>(code) + 128);
    }
    scales[static_cast<std::int64_t>(g) * scale_stride] = scale;
  }
}

}  // namespace

std::unique_ptr<PackedPart> pack_grouped_int(const weights::GroupedIntWeights& weights, const Tensor& bias,
                                             Precision precision, ThreadPool& pool) {
  std::vector<std::int32_t> order = order_by_group(weights);
  IntTiles tiles;
  tiles.out_features = weights.out_features;
  tiles.in_features = weights.in_features;
  tiles.bits = weights.bits;
  tiles.num_groups = weights.num_groups();
  tiles.segments = segments_of(weights, order);
  if (precision == Precision::Fast) {
    tiles.activation_group = activation_group_of(tiles.segments);
    if (tiles.activation_group == 0) warn_about_f32_activations(weights);
  }
  tiles.scales = pack_scales(weights, tiles);
  if (!all_zeros_central(weights)) {
    tiles.zeros =
        weights.bits == 8 ? pack_zeros<std::int16_t>(weights, tiles) : pack_zeros<std::uint8_t>(weights, tiles);
  }
  pack_codes(weights, order, tiles, pool);
  return std::make_unique<IntPart>(std::move(tiles), bias.is_empty() ? Tensor{} : Tensor::copy_of(bias),
                                   std::move(order));
}

std::unique_ptr<PackedPart> pack_dense_at_8_bits(const weights::DenseWeights& weights, const Tensor& bias,
                                                 ThreadPool& pool) {
  IntTiles tiles;
  tiles.out_features = weights.weight.shape()[0];
  tiles.in_features = weights.weight.shape()[1];
  constexpr std::int64_t kGroup = 64;
  if (tiles.in_features % kGroup != 0) return nullptr;
  tiles.bits = 8;
  tiles.activation_group = kGroup;
  tiles.num_groups = tiles.in_features / tiles.activation_group;
  for (std::int64_t g = 0; g < tiles.num_groups; ++g) {
    tiles.segments.push_back({g * tiles.activation_group, (g + 1) * tiles.activation_group, g});
  }
  tiles.codes = Tensor::empty(DType::U8, {tiles.num_tiles(), tiles.tile_bytes()});
  prefer_huge_pages(tiles.codes.mutable_view());
  tiles.scales = Tensor::zeros(DType::F16, {tiles.num_tiles(), tiles.num_groups, kTileRows});
  const auto in = static_cast<std::size_t>(tiles.in_features);
  pool.run(tiles.num_tiles(), [&](std::int64_t tile, int) {
    std::vector<float> row(in);
    CodeRows codes(tiles);
    Half* scales = tiles.scales.span<Half>().data() + tile * tiles.num_groups * kTileRows;
    for (std::int64_t r = 0; r < std::min(kTileRows, tiles.out_features - tile * kTileRows); ++r) {
      const TensorView source = weights.weight.view().rows(tile * kTileRows + r, 1);
      to_float32(source.data(), source.dtype(), tiles.in_features, row.data());
      quantize_row_to_8_bits(row, tiles.activation_group, codes.row(r, tiles.in_features).data(), scales + r,
                             kTileRows);
    }
    codes.pack(tiles, tiles.codes.matrix<std::uint8_t>().row(tile));
  });
  return std::make_unique<IntPart>(std::move(tiles), bias.is_empty() ? Tensor{} : Tensor::copy_of(bias),
                                   std::vector<std::int32_t>{});
}

}  // namespace nibble::backend::cpu
