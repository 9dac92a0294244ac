#include "core/tensor.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "core/fp8_e4m3.h"

namespace nibble {
namespace {

constexpr std::size_t kHostAlignment = 64;

template <class To>
To from_float(float x) {
  if constexpr (std::is_same_v<To, float>) {
    return x;
  } else if constexpr (std::is_same_v<To, Half>) {
    return to_half(x);
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    return to_bfloat16(x);
  } else {
    return {fp8_e4m3_bits(x)};
  }
}

template <class Visitor>
void visit_float_dtype(DType dtype, Visitor&& visit) {
  switch (dtype) {
    case DType::F32: return visit(float{});
    case DType::F16: return visit(Half{});
    case DType::BF16: return visit(BFloat16{});
    case DType::F8E4M3: return visit(Fp8E4M3{});
    default: break;
  }
  throw Error(ErrorCode::InvalidArgument, "conversion of the integer dtype " + std::string(name(dtype)));
}

void convert_run(const void* from, DType from_dtype, void* to, DType to_dtype, std::int64_t count) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * size_bytes(from_dtype));
    return;
  }
  visit_float_dtype(from_dtype, [&](auto from_tag) {
    visit_float_dtype(to_dtype, [&](auto to_tag) {
      using From = decltype(from_tag);
      using To = decltype(to_tag);
      const auto* source = static_cast<const From*>(from);
      auto* target = static_cast<To*>(to);
      for (std::int64_t i = 0; i < count; ++i) target[i] = from_float<To>(to_float(source[i]));
    });
  });
}

}  // namespace

Buffer Buffer::host(std::size_t size_bytes) {
  const std::size_t rounded = (size_bytes + kHostAlignment - 1) / kHostAlignment * kHostAlignment;
  void* data = std::aligned_alloc(kHostAlignment, rounded == 0 ? kHostAlignment : rounded);
  if (data == nullptr) {
    throw Error(ErrorCode::OutOfMemory, "cannot allocate " + std::to_string(size_bytes) + " bytes of host memory");
  }
  return {data, size_bytes, Device{}, [](void* memory, void*) { std::free(memory); }};
}

Buffer Buffer::borrowed(const void* data, std::size_t size_bytes, Device device) {
  return {const_cast<void*>(data), size_bytes, device, nullptr};
}

std::int64_t checked_multiply(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    throw Error(ErrorCode::Corrupt, "size overflow: " + std::to_string(a) + " * " + std::to_string(b));
  }
  return product;
}

Shape::Shape(std::span<const std::int64_t> sizes) {
  if (sizes.size() > kMaxRank) {
    throw Error(ErrorCode::Unsupported, "tensor of rank " + std::to_string(sizes.size()) + "; at most 4 is supported");
  }
  rank_ = static_cast<int>(sizes.size());
  std::int64_t elements = 1;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < 0) throw Error(ErrorCode::InvalidArgument, "negative tensor size " + std::to_string(sizes[i]));
    if (__builtin_mul_overflow(elements, sizes[i], &elements) || elements > (std::int64_t{1} << 62)) {
      throw Error(ErrorCode::InvalidArgument, "tensor with more than 2^62 elements");
    }
    sizes_[i] = sizes[i];
  }
}

std::int64_t Shape::num_elements() const {
  std::int64_t elements = 1;
  for (const std::int64_t size : sizes()) elements *= size;
  return elements;
}

std::string Shape::to_string() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string((*this)[i]);
  }
  return text + "]";
}

Tensor::Tensor(Buffer buffer, DType dtype, Shape shape) : buffer_(std::move(buffer)), dtype_(dtype), shape_(shape) {
  check(buffer_.size_bytes() >= static_cast<std::size_t>(shape.num_elements()) * nibble::size_bytes(dtype),
        "Tensor buffer smaller than its shape");
}

Tensor Tensor::empty(DType dtype, Shape shape) {
  const std::int64_t bytes =
      checked_multiply(shape.num_elements(), static_cast<std::int64_t>(nibble::size_bytes(dtype)));
  return {Buffer::host(static_cast<std::size_t>(bytes)), dtype, shape};
}

Tensor Tensor::zeros(DType dtype, Shape shape) {
  Tensor tensor = empty(dtype, shape);
  std::memset(tensor.buffer_.data(), 0, tensor.buffer_.size_bytes());
  return tensor;
}

Tensor Tensor::borrow(TensorView view) {
  check(view.is_contiguous(), "Tensor::borrow of a strided view");
  return {Buffer::borrowed(view.data(), view.size_bytes(), view.device()), view.dtype(), view.shape()};
}

Tensor Tensor::copy_of(TensorView view) {
  Tensor copy = empty(view.dtype(), view.shape());
  convert(view, copy.mutable_view());
  return copy;
}

void prefer_huge_pages(MutableTensorView tensor) {
  constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<std::uintptr_t>(tensor.data()) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(tensor.data()) + tensor.size_bytes()) / kHugePage * kHugePage;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

void convert(TensorView from, MutableTensorView to) {
  check(from.shape() == to.shape(), "convert between different shapes");
  if (from.num_elements() == 0) return;
  if (from.is_contiguous() && to.is_contiguous()) {
    convert_run(from.data(), from.dtype(), to.data(), to.dtype(), from.num_elements());
    return;
  }
  const std::int64_t rows = from.shape()[0];
  for (std::int64_t r = 0; r < rows; ++r) {
    const TensorView source = from.rows(r, 1);
    convert_run(source.data(), source.dtype(), to.rows(r, 1).data(), to.dtype(), source.num_elements());
  }
}

Tensor to_dtype(TensorView from, DType dtype) {
  Tensor converted = Tensor::empty(dtype, from.shape());
  convert(from, converted.mutable_view());
  return converted;
}

void to_float32(const void* from, DType dtype, std::int64_t count, float* to) {
  convert_run(from, dtype, to, DType::F32, count);
}

}  // namespace nibble
