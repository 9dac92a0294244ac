#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <type_traits>

#include "core/buffer.h"
#include "core/dtype.h"
#include "core/error.h"

namespace nibble {

/// Sizes of up to four dimensions, outermost first. Rank 0 is a scalar with one element.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes) : Shape(std::span(sizes.begin(), sizes.size())) {}
  /// Errors: Unsupported above rank 4, InvalidArgument for a negative size or more than 2^62 elements.
  explicit Shape(std::span<const std::int64_t> sizes);

  int rank() const { return rank_; }
  std::int64_t operator[](int dimension) const { return sizes_[static_cast<std::size_t>(dimension)]; }
  std::int64_t num_elements() const;
  std::span<const std::int64_t> sizes() const { return {sizes_.data(), static_cast<std::size_t>(rank_)}; }
  /// "[576, 1536]"
  std::string to_string() const;
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<std::int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

/// Product of two counts that come from a file. Errors: Corrupt on overflow.
std::int64_t checked_multiply(std::int64_t a, std::int64_t b);

/// Typed borrowed matrix for inner loops: element (r, c) is data[r * row_stride + c].
template <class T>
struct Matrix {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;  // elements

  T* row(std::int64_t r) const { return data + r * row_stride; }
  std::span<T> row_span(std::int64_t r) const { return {row(r), static_cast<std::size_t>(cols)}; }
  Matrix block(std::int64_t first_row, std::int64_t num_rows) const {
    return {row(first_row), num_rows, cols, row_stride};
  }
  Matrix columns(std::int64_t first_col, std::int64_t num_cols) const {
    return {data + first_col, rows, num_cols, row_stride};
  }
  operator Matrix<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data, rows, cols, row_stride};
  }  // NOLINT: like a pointer
};

/// Borrowed tensor: (pointer, dtype, shape, row stride, device). Only the outermost dimension may be
/// strided; inner dimensions are contiguous, row-major. Pass by value; it must not outlive its owner.
template <class Void>
class BasicTensorView {
 public:
  static constexpr bool kConst = std::is_const_v<Void>;
  template <class T>
  using Element = std::conditional_t<kConst, const T, T>;

  BasicTensorView() = default;
  BasicTensorView(Void* data, DType dtype, Shape shape, Device device = {})
      : BasicTensorView(data, dtype, shape, row_elements(shape), device) {}
  BasicTensorView(Void* data, DType dtype, Shape shape, std::int64_t row_stride, Device device)
      : data_(data), dtype_(dtype), shape_(shape), row_stride_(row_stride), device_(device) {}
  operator BasicTensorView<const void>() const
    requires(!kConst)
  {  // NOLINT: mutable to const, as pointers do
    return {data_, dtype_, shape_, row_stride_, device_};
  }

  Void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  Device device() const { return device_; }
  std::int64_t row_stride() const { return row_stride_; }  // elements from one outermost index to the next
  bool is_contiguous() const { return row_stride_ == row_elements(shape_); }
  bool is_empty() const { return data_ == nullptr; }
  std::int64_t num_elements() const { return shape_.num_elements(); }
  std::size_t size_bytes() const { return static_cast<std::size_t>(num_elements()) * nibble::size_bytes(dtype_); }

  /// The elements, contiguous. The dtype must be T's.
  template <class T>
  std::span<Element<T>> span() const {
    check(dtype_of<T> == dtype_ && is_contiguous(), "TensorView::span of another dtype or a strided view");
    return {static_cast<Element<T>*>(data_), static_cast<std::size_t>(num_elements())};
  }
  /// A rank-2 tensor as a matrix. The dtype must be T's.
  template <class T>
  Matrix<Element<T>> matrix() const {
    check(dtype_of<T> == dtype_ && shape_.rank() == 2, "TensorView::matrix of another dtype or rank");
    return {static_cast<Element<T>*>(data_), shape_[0], shape_[1], row_stride_};
  }
  /// Rows [first, first + count) of the outermost dimension.
  BasicTensorView rows(std::int64_t first, std::int64_t count) const {
    check(first >= 0 && count >= 0 && first + count <= shape_[0], "TensorView::rows out of range");
    std::array<std::int64_t, Shape::kMaxRank> sizes{};
    for (int i = 0; i < shape_.rank(); ++i) sizes[static_cast<std::size_t>(i)] = shape_[i];
    sizes[0] = count;
    auto* bytes = static_cast<std::conditional_t<kConst, const std::byte, std::byte>*>(data_);
    return {bytes + first * row_stride_ * static_cast<std::int64_t>(nibble::size_bytes(dtype_)), dtype_,
            Shape(std::span<const std::int64_t>(sizes.data(), static_cast<std::size_t>(shape_.rank()))), row_stride_,
            device_};
  }

 private:
  static std::int64_t row_elements(const Shape& shape) {
    std::int64_t elements = 1;
    for (int i = 1; i < shape.rank(); ++i) elements *= shape[i];
    return elements;
  }

  Void* data_ = nullptr;
  DType dtype_ = DType::F32;
  Shape shape_;
  std::int64_t row_stride_ = 0;
  Device device_;
};

using TensorView = BasicTensorView<const void>;
using MutableTensorView = BasicTensorView<void>;

/// A contiguous tensor that owns its memory (or borrows it where it was made by `borrow`). Move only.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Buffer buffer, DType dtype, Shape shape);

  /// Host memory, not initialised. Errors: OutOfMemory.
  static Tensor empty(DType dtype, Shape shape);
  static Tensor zeros(DType dtype, Shape shape);
  /// The memory of `view`, which must be contiguous and outlive the tensor (a mapped file).
  static Tensor borrow(TensorView view);
  /// A copy on the host of a host view, strided or not.
  static Tensor copy_of(TensorView view);

  bool is_empty() const { return buffer_.data() == nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  Device device() const { return buffer_.device(); }
  std::int64_t num_elements() const { return is_empty() ? 0 : shape_.num_elements(); }
  std::size_t size_bytes() const { return static_cast<std::size_t>(num_elements()) * nibble::size_bytes(dtype_); }
  bool owns() const { return buffer_.owns(); }

  TensorView view() const { return {buffer_.data(), dtype_, shape_, buffer_.device()}; }
  MutableTensorView mutable_view() { return {buffer_.data(), dtype_, shape_, buffer_.device()}; }
  operator TensorView() const { return view(); }  // NOLINT: owner to view

  template <class T>
  std::span<const T> span() const {
    return view().span<T>();
  }
  template <class T>
  std::span<T> span() {
    return mutable_view().span<T>();
  }
  template <class T>
  Matrix<const T> matrix() const {
    return view().matrix<T>();
  }
  template <class T>
  Matrix<T> matrix() {
    return mutable_view().matrix<T>();
  }

 private:
  Buffer buffer_;
  DType dtype_ = DType::F32;
  Shape shape_;
};

/// Asks the kernel for huge pages under a large host tensor that is not written yet: streaming weights through 4 KB
/// pages stops the prefetcher at every page. Only whole huge pages inside the tensor are affected, so no memory is
/// added.
void prefer_huge_pages(MutableTensorView tensor);

/// Converts between float dtypes on the host, element by element, round half to even. Same shape.
void convert(TensorView from, MutableTensorView to);
/// The tensor as a new host tensor of another float dtype.
Tensor to_dtype(TensorView from, DType dtype);
/// `count` elements of a float dtype from `from`, as f32.
void to_float32(const void* from, DType dtype, std::int64_t count, float* to);

}  // namespace nibble
