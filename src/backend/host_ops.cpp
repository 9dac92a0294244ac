#include "backend/host_ops.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

namespace nibble::backend {
namespace {

std::int64_t read_number(const char* path) {
  std::ifstream file(path);
  std::int64_t number = 0;
  return file >> number ? number : -1;
}

std::int64_t num_scale_groups(std::int64_t width, const ActivationFormat& format) {
  switch (format.kind) {
    case ActivationKind::Fp8PerToken: return 1;
    case ActivationKind::Fp8Per128: return (width + 127) / 128;
    case ActivationKind::Int8PerGroup:
    case ActivationKind::Int16PerGroup: return (width + format.group_size - 1) / format.group_size;
    default: return 0;
  }
}

}  // namespace

DType values_dtype(ActivationKind kind) {
  switch (kind) {
    case ActivationKind::F32: return DType::F32;
    case ActivationKind::F16: return DType::F16;
    case ActivationKind::BF16: return DType::BF16;
    case ActivationKind::Fp8PerToken:
    case ActivationKind::Fp8Static:
    case ActivationKind::Fp8Per128: return DType::F8E4M3;
    case ActivationKind::Int8PerGroup: return DType::I8;
    case ActivationKind::Int16PerGroup: return DType::I16;
  }
  return DType::F32;
}

Memory host_memory() {
  Memory memory;
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::int64_t kilobytes = 0;
  std::string unit;
  while (file >> key >> kilobytes) {
    std::getline(file, unit);
    if (key == "MemTotal:") memory.total_bytes = kilobytes * 1024;
    if (key == "MemAvailable:") memory.free_bytes = kilobytes * 1024;
  }
  const std::int64_t limit = read_number("/sys/fs/cgroup/memory.max");
  const std::int64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) {
    memory.total_bytes = std::min(memory.total_bytes, limit);
    memory.free_bytes = std::min(memory.free_bytes, std::max<std::int64_t>(0, limit - used));
  }
  return memory;
}

Activation make_host_activation(std::int64_t capacity, std::int64_t width, const ActivationFormat& format) {
  Activation activation;
  activation.format = format;
  activation.values = Tensor::empty(values_dtype(format.kind), {capacity, width});
  if (const std::int64_t groups = num_scale_groups(width, format); groups > 0) {
    activation.scales = Tensor::empty(DType::F32, {capacity, groups});
    if (format.kind >= ActivationKind::Int8PerGroup) activation.sums = Tensor::empty(DType::I32, {capacity, groups});
  }
  return activation;
}

ActivationFormat fp8_input_format(const weights::Fp8Weights& weights) {
  if (weights.block_size > 0) return {.kind = ActivationKind::Fp8Per128};
  if (weights.input_scale > 0) return {.kind = ActivationKind::Fp8Static, .static_scale = weights.input_scale};
  return {.kind = ActivationKind::Fp8PerToken};
}

void read_host_activation(const Activation& from, Matrix<float> to) {
  check(to.rows <= from.num_tokens && to.cols == from.width() && from.format.kind <= ActivationKind::BF16,
        "read of a float activation of the same width");
  for (std::int64_t t = 0; t < to.rows; ++t) {
    const TensorView row = from.values.view().rows(t, 1);
    to_float32(row.data(), row.dtype(), to.cols, to.row(t));
  }
}

void write_host_activation(Matrix<const float> from, Activation& to) {
  check(from.rows <= to.capacity() && from.cols == to.width() && to.format.kind <= ActivationKind::BF16,
        "write to a float activation of the same width");
  to.num_tokens = from.rows;
  for (std::int64_t t = 0; t < from.rows; ++t) {
    convert({from.row(t), DType::F32, {1, from.cols}}, to.values.mutable_view().rows(t, 1));
  }
}

HostRope::HostRope(const RopeSpec& spec) {
  const auto pairs = static_cast<std::int64_t>(spec.inv_freq.size());
  cos_ = Tensor::empty(DType::F32, {spec.max_positions, pairs});
  sin_ = Tensor::empty(DType::F32, {spec.max_positions, pairs});
  const auto cos = cos_.matrix<float>();
  const auto sin = sin_.matrix<float>();
  for (std::int64_t position = 0; position < spec.max_positions; ++position) {
    for (std::int64_t j = 0; j < pairs; ++j) {
      const float angle = static_cast<float>(position) * spec.inv_freq[static_cast<std::size_t>(j)];
      cos.row(position)[j] = std::cos(angle) * spec.attention_factor;
      sin.row(position)[j] = std::sin(angle) * spec.attention_factor;
    }
  }
}

}  // namespace nibble::backend
