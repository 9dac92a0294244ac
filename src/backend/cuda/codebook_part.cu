#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "backend/cuda/dense_kernels.cuh"
#include "backend/cuda/device.h"
#include "backend/cuda/joined_rows.h"
#include "backend/cuda/streamed_part.cuh"

namespace nibble::backend::cuda {
namespace {

/// Codes as the entries of a row's table, f16 or f32.
template <int kBits, class To>
struct CodebookDecode {
  using Words = std::uint32_t[lane_words(kBits)];
  PackedBlocks packed;
  const To* tables;  // [num_rows, 2^bits]
  int num_rows;

  __device__ void load(int tile, int block, int lane, Words& words) const {
    load_lane_words<kBits>(packed.block(tile, block), lane, words);
  }
  __device__ void operator()(const Words& words, int tile, int, int segment, int lane, float (&values)[2][8]) const {
    std::uint32_t nibbles[2];
    nibble_words<kBits>(words, segment, nibbles);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(tile * kTileRows + lane / 4 + 8 * half, num_rows - 1);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int bit = 4 * nibble_of(NibbleOrder::Rows, {segment, i / 4, half, i % 4});
        const std::uint32_t code = (nibbles[i / 4] >> bit) & ((1U << kBits) - 1);
        values[half][i] = static_cast<float>(__ldg(tables + (row << kBits) + code));
      }
    }
  }
};

/// to[row - rows.first, col] += val, a warp a row.
template <class To>
__global__ void add_outliers_kernel(const Outliers outliers, const RowRange rows, std::int64_t num_cols, To* to) {
  const std::int64_t local = static_cast<std::int64_t>(blockIdx.x) * kDenseWarps + threadIdx.x / kWarpSize;
  if (local >= rows.count) return;
  const std::int64_t row = rows.first + local;
  for (int j = outliers.rows[row] + static_cast<int>(threadIdx.x) % kWarpSize; j < outliers.rows[row + 1];
       j += kWarpSize) {
    To& element = to[local * num_cols + outliers.cols[j]];
    element = static_cast<To>(static_cast<float>(element) + outliers.vals[j]);
  }
}

/// Outliers of all parts, one row after the other; columns of a row ascend, and those that a file names twice are
/// summed: kernels handle a row's outliers side by side.
struct HostOutliers {
  std::vector<std::int32_t> rows{0};
  std::vector<std::int32_t> cols;
  std::vector<float> vals;

  void append(const weights::CodebookWeights& part) {
    for (std::int64_t o = 0; o < part.out_features; ++o) {
      if (!part.rows.is_empty()) append_row(part, static_cast<std::size_t>(o));
      rows.push_back(static_cast<std::int32_t>(cols.size()));
    }
  }

 private:
  void append_row(const weights::CodebookWeights& part, std::size_t o) {
    const auto starts = part.rows.span<std::int32_t>();
    std::vector<std::int32_t> order(static_cast<std::size_t>(starts[o + 1] - starts[o]));
    if (order.empty()) return;
    std::iota(order.begin(), order.end(), starts[o]);
    const auto from_cols = part.cols.span<std::int32_t>();
    const auto from_vals = part.vals.span<float>();
    const auto col_of = [&](std::int32_t j) { return from_cols[static_cast<std::size_t>(j)]; };
    std::ranges::stable_sort(order, {}, col_of);
    const auto first = static_cast<std::size_t>(rows.back());
    for (const std::int32_t j : order) {
      const float value = from_vals[static_cast<std::size_t>(j)];
      if (cols.size() > first && cols.back() == col_of(j)) {
        vals.back() += value;
      } else {
        cols.push_back(col_of(j));
        vals.push_back(value);
      }
    }
  }
};

template <class T>
Tensor upload(const std::vector<T>& values, DType dtype, cudaStream_t stream) {
  return to_device({values.data(), dtype, {static_cast<std::int64_t>(values.size())}}, stream);
}

template <int kBits>
class CodebookPart final : public StreamedPart<CodebookCodec<kBits>> {
 public:
  CodebookPart(std::span<const weights::CodebookWeights* const> parts, ActivationKind kind, cudaStream_t stream) {
    std::vector<TensorView> code_parts;
    std::vector<Tensor> table_parts;
    HostOutliers outliers;
    for (const auto* part : parts) {
      code_parts.emplace_back(part->codes);
      table_parts.push_back(to_dtype(part->lookup_table, kind == ActivationKind::F32 ? DType::F32 : DType::F16));
      outliers.append(*part);
    }
    const Tensor codes = join_rows(code_parts, stream);
    tables_ = join_rows(std::vector<TensorView>(table_parts.begin(), table_parts.end()), stream);
    const ColumnPlan plan = plan_columns(parts.front()->in_features);
    shape_ = packed_shape(codes.shape()[0], parts.front()->in_features, plan.num_blocks, code_bytes(kBits));
    blocks_ = device_buffer(static_cast<std::size_t>(shape_.size_bytes()));
    pack_codes(codes, kBits, NibbleOrder::Rows, shape_, {}, blocks_.data(), stream);
    this->is_streamed_ = kind == ActivationKind::F16;
    if (this->is_streamed_) {
      planes_ = device_buffer(static_cast<std::size_t>(shape_.num_tiles) * CodebookCodec<kBits>::kTableBytes);
      pack_tables(tables_, kBits, shape_, planes_.data(), stream);
    }
    check(cudaStreamSynchronize(stream));  // the sources go
    if (!outliers.cols.empty()) {
      rows_ = upload(outliers.rows, DType::I32, stream);
      cols_ = upload(outliers.cols, DType::I32, stream);
      vals_ = upload(outliers.vals, DType::F32, stream);
    }
    this->codec_.packed = {static_cast<const std::byte*>(blocks_.data()), shape_.num_blocks, shape_.block_bytes};
    this->codec_.tables = static_cast<const std::byte*>(planes_.data());
    this->codec_.outliers = {data_of<std::int32_t>(rows_), data_of<std::int32_t>(cols_), data_of<float>(vals_)};
    this->out_features_ = shape_.num_rows;
    this->in_features_ = parts.front()->in_features;
    this->num_tiles_ = shape_.num_tiles;
    this->num_blocks_ = plan.num_blocks;
    // With outliers, which dense() adds, for few tokens only.
    if (outliers.cols.empty()) this->make_wide(stream);
    this->size_bytes_ = static_cast<std::int64_t>(blocks_.size_bytes() + planes_.size_bytes() + tables_.size_bytes() +
                                                  rows_.size_bytes() + cols_.size_bytes() + vals_.size_bytes());
  }

  const void* dense(ActivationKind kind, RowRange rows, void* scratch, cudaStream_t stream) const override {
    if (kind == ActivationKind::F32) {
      write_rows(rows, static_cast<float*>(scratch), stream);
    } else {
      write_rows(rows, static_cast<__half*>(scratch), stream);
    }
    return scratch;
  }

 private:
  template <class To>
  void write_rows(const RowRange& rows, To* to, cudaStream_t stream) const {
    const CodebookDecode<kBits, To> decode{this->codec_.packed, data_of<To>(tables_), shape_.num_rows};
    write_dense(decode, shape_, rows, nullptr, to, stream);
    if (rows_.is_empty()) return;
    const auto grid = static_cast<unsigned>((rows.count + kDenseWarps - 1) / kDenseWarps);
    add_outliers_kernel<<<grid, kDenseWarps * kWarpSize, 0, stream>>>(this->codec_.outliers, rows, shape_.num_cols, to);
    check(cudaGetLastError());
  }

  PackedShape shape_;
  Buffer blocks_;
  Buffer planes_;  // of tables_, for streaming
  Tensor tables_;  // in the dtype of inputs
  Tensor rows_;
  Tensor cols_;
  Tensor vals_;
};

}  // namespace

std::unique_ptr<DevicePart> make_codebook_part(std::span<const weights::CodebookWeights* const> parts,
                                               ActivationKind kind, cudaStream_t stream) {
  if (parts.front()->bits == 3) return std::make_unique<CodebookPart<3>>(parts, kind, stream);
  if (parts.front()->bits == 4) return std::make_unique<CodebookPart<4>>(parts, kind, stream);
  throw Error(ErrorCode::Unsupported,
              "codebooks of " + std::to_string(parts.front()->bits) + " bits have no CUDA kernel");
}

bool can_join(const weights::CodebookWeights& a, const weights::CodebookWeights& b) {
  return a.bits == b.bits && a.in_features == b.in_features;
}

}  // namespace nibble::backend::cuda
