#include <algorithm>
#include <string>
#include <vector>

#include "backend/cuda/dense_kernels.cuh"
#include "backend/cuda/device.h"
#include "backend/cuda/joined_rows.h"
#include "backend/cuda/streamed_part.cuh"

namespace nibble::backend::cuda {
namespace {

/// Integers as floats.
template <int kBits>
struct IntDecode {
  using Codec = IntCodec<kBits, false>;
  using Words = std::uint32_t[Codec::kWords];
  Codec codec;

  __device__ void load(int tile, int block, int lane, Words& words) const {
    codec.load(codec.packed.block(tile, block), lane, words);
  }
  __device__ void operator()(const Words& words, int tile, int block, int segment, int lane,
                             float (&values)[2][8]) const {
    const GroupGrid grid = codec.grid(codec.packed.block(tile, block), segment, lane, tile, block);
    Fragments a;
    codec.fragments(words, segment, grid, {}, a);
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // register 4 step + half + 2 (col / 2)
      const int half = i % 2;
      const float2 pair = __half22float2(as_half2(a[i / 4][i % 4]));
      const int col = 4 * (i / 4) + 2 * (i % 4 / 2);
      values[half][col] = grid.scale[half] * pair.x;
      values[half][col + 1] = grid.scale[half] * pair.y;
    }
  }
};

template <int kBits, bool kWholeBlocks>
class IntPart final : public StreamedPart<IntCodec<kBits, kWholeBlocks>> {
 public:
  IntPart(std::span<const weights::GroupedIntWeights* const> parts, const ColumnPlan& plan, ActivationKind kind,
          cudaStream_t stream) {
    const weights::GroupedIntWeights& first = *parts.front();
    DeviceColumns columns(plan, stream);
    const auto tensors_of = [&](Tensor weights::GroupedIntWeights::* member) {
      std::vector<TensorView> tensors;
      for (const auto* part : parts) tensors.emplace_back(part->*member);
      return tensors;
    };
    const Tensor codes = join_rows(tensors_of(&weights::GroupedIntWeights::codes), stream);
    const Tensor scales = join_scales(tensors_of(&weights::GroupedIntWeights::scales), stream);
    const Tensor zeros = join_rows(tensors_of(&weights::GroupedIntWeights::zeros), stream);
    const bool has_float_scales = scales.dtype() == DType::F32;
    shape_ = packed_shape(codes.shape()[0], first.in_features, plan.num_blocks,
                          block_bytes_with_groups(kBits, plan.segments_per_group, has_float_scales));
    blocks_ = device_buffer(static_cast<std::size_t>(shape_.size_bytes()));
    pack_codes(codes, kBits, NibbleOrder::Pairs, shape_, columns.columns, blocks_.data(), stream);
    pack_groups({scales, zeros, plan.segments_per_group}, kBits, shape_, columns.groups, blocks_.data(), stream);
    check(cudaStreamSynchronize(stream));  // the sources go
    this->codec_.packed = {static_cast<const std::byte*>(blocks_.data()), shape_.num_blocks, shape_.block_bytes};
    this->codec_.segments_per_group = plan.segments_per_group;
    this->codec_.has_float_scales = has_float_scales;
    this->is_streamed_ = kind == ActivationKind::F16;
    this->out_features_ = shape_.num_rows;
    this->in_features_ = first.in_features;
    this->num_tiles_ = shape_.num_tiles;
    this->num_blocks_ = plan.num_blocks;
    if (!has_float_scales && plan.segments_per_group >= 2) this->make_wide(stream);
    this->columns_ = std::move(columns.columns);
    this->size_bytes_ = static_cast<std::int64_t>(blocks_.size_bytes() + this->columns_.size_bytes());
  }

  const void* dense(ActivationKind kind, RowRange rows, void* scratch, cudaStream_t stream) const override {
    IntDecode<kBits> decode;
    decode.codec.packed = this->codec_.packed;
    decode.codec.segments_per_group = this->codec_.segments_per_group;
    decode.codec.has_float_scales = this->codec_.has_float_scales;
    const auto* columns = data_of<std::int32_t>(this->columns_);
    if (kind == ActivationKind::F32) {
      write_dense(decode, shape_, rows, columns, static_cast<float*>(scratch), stream);
    } else {
      write_dense(decode, shape_, rows, columns, static_cast<__half*>(scratch), stream);
    }
    return scratch;
  }

 private:
  PackedShape shape_;
  Buffer blocks_;
};

template <int kBits>
std::unique_ptr<DevicePart> make_part(std::span<const weights::GroupedIntWeights* const> parts, ActivationKind kind,
                                      cudaStream_t stream) {
  const ColumnPlan plan = plan_columns(*parts.front());
  const bool has_half_scales =
      std::ranges::all_of(parts, [](const auto* part) { return part->scales.dtype() == DType::F16; });
  if (plan.segments_per_group == kSegments && has_half_scales) {
    return std::make_unique<IntPart<kBits, true>>(parts, plan, kind, stream);
  }
  return std::make_unique<IntPart<kBits, false>>(parts, plan, kind, stream);
}

}  // namespace

std::unique_ptr<DevicePart> make_int_part(std::span<const weights::GroupedIntWeights* const> parts, ActivationKind kind,
                                          cudaStream_t stream) {
  switch (parts.front()->bits) {
    case 2: return make_part<2>(parts, kind, stream);
    case 3: return make_part<3>(parts, kind, stream);
    case 4: return make_part<4>(parts, kind, stream);
    case 8: return make_part<8>(parts, kind, stream);
    default: break;
  }
  throw Error(ErrorCode::Unsupported,
              "integers of " + std::to_string(parts.front()->bits) + " bits have no CUDA kernel");
}

bool can_join(const weights::GroupedIntWeights& a, const weights::GroupedIntWeights& b) {
  return a.bits == b.bits && a.in_features == b.in_features && a.group_size == b.group_size &&
         a.first_group_offset == b.first_group_offset && a.num_groups() == b.num_groups() && !a.has_g_idx() &&
         !b.has_g_idx();
}

}  // namespace nibble::backend::cuda
