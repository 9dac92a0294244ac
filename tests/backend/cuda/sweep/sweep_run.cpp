#include "sweep_run.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <utility>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/handles.h"
#include "core/error.h"
#include "core/fp8_e4m3.h"
#include "sweep_checks.cuh"

namespace nibble::backend::test {
namespace {

constexpr std::int64_t kMaxTokens = 4096;
constexpr std::int64_t kWidestInput = 28672;
constexpr std::size_t kGuardBytes = std::size_t{64} << 10;
constexpr std::int64_t kMaxPrinted = 3;  // faults of one linear

/// Which elements of an output are compared, ascending.
struct Samples {
  std::vector<std::int64_t> rows;  // outputs, counted over all parts
  std::vector<std::int64_t> tokens;
};

/// Of every part its edges, a whole tile of rows somewhere, and rows anywhere; of the tokens the last one of each count
/// and some anywhere.
Samples choose_samples(const FusedShape& shape, const SweepExtent& extent, Noise& noise) {
  std::set<std::int64_t> rows, tokens;
  const std::int64_t num_tokens = extent.token_counts.back();
  std::int64_t base = 0;
  for (const std::int64_t out : shape.out_features) {
    const auto add = [&](std::int64_t row) { rows.insert(base + std::clamp<std::int64_t>(row, 0, out - 1)); };
    for (const std::int64_t row : {std::int64_t{0}, std::int64_t{1}, out / 2, out - 2, out - 1}) add(row);
    const std::int64_t tile = noise.next() % ((out + 15) / 16) * 16;
    for (std::int64_t row = tile; row < tile + 16; ++row) add(row);
    for (int i = 0; i < 12; ++i) add(noise.next() % out);
    if (extent.is_whole) {
      for (std::int64_t row = 0; row < out; ++row) add(row);
    }
    base += out;
  }
  for (const std::int64_t count : extent.token_counts) tokens.insert(count - 1);
  for (int i = 0; i < 6; ++i) tokens.insert(noise.next() % num_tokens);
  if (extent.is_whole) {
    for (std::int64_t token = 0; token < num_tokens; ++token) tokens.insert(token);
  }
  return {{rows.begin(), rows.end()}, {tokens.begin(), tokens.end()}};
}

/// What one output should be, and how far rounding may take it.
struct ExpectedValue {
  double y = 0;
  double spread = 0;     // sqrt(sum of (w x)^2): how errors of independent roundings add up
  double magnitude = 0;  // sum of |w x|
};

/// [tokens][rows] of the samples.
struct Reference {
  Samples samples;
  std::vector<ExpectedValue> values;

  const ExpectedValue& at(std::size_t token, std::size_t row) const {
    return values[token * samples.rows.size() + row];
  }
};

ExpectedValue expect(const float* w, const float* x, std::int64_t in) {
  double y = 0;
  double squares = 0;
  double magnitude = 0;
  for (std::int64_t k = 0; k < in; ++k) {
    const double product = static_cast<double>(w[k]) * static_cast<double>(x[k]);
    y += product;
    squares += product * product;
    magnitude += std::abs(product);
  }
  return {y, std::sqrt(squares), magnitude};
}

/// Rounds to E4M3 by the largest magnitude of each run of inputs.
void round_inputs(std::span<float> row, std::int64_t run) {
  for (std::size_t first = 0; first < row.size(); first += static_cast<std::size_t>(run)) {
    const std::span<float> values = row.subspan(first, std::min(static_cast<std::size_t>(run), row.size() - first));
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(value));
    const float scale = largest / 448.0f;
    for (float& value : values) value = to_float(to_fp8_e4m3(value / scale)) * scale;
  }
}

Reference make_reference(const std::vector<weights::LinearPart>& parts, Samples samples, const Tensor& tokens,
                         std::int64_t rounded_run, ThreadPool& pool) {
  const std::int64_t in = weights::in_features(parts.front().weights);
  std::vector<std::vector<float>> x;
  for (const std::int64_t token : samples.tokens) {
    x.emplace_back(static_cast<std::size_t>(in));
    to_float32(tokens.span<Half>().data() + token * in, DType::F16, in, x.back().data());
    if (rounded_run > 0) round_inputs(x.back(), rounded_run);
  }
  Reference reference{std::move(samples), {}};
  const std::vector<std::int64_t>& rows = reference.samples.rows;
  reference.values.resize(rows.size() * x.size());
  pool.run(static_cast<std::int64_t>(rows.size()), [&](std::int64_t task, int) {
    const auto r = static_cast<std::size_t>(task);
    std::int64_t row = rows[r];
    std::size_t part = 0;
    while (row >= weights::out_features(parts[part].weights)) row -= weights::out_features(parts[part++].weights);
    std::vector<float> w(static_cast<std::size_t>(in));
    weights::dequantize_rows(parts[part].weights, row, {w.data(), 1, in, in});
    for (std::size_t t = 0; t < x.size(); ++t) {
      reference.values[t * rows.size() + r] = expect(w.data(), x[t].data(), in);
    }
  });
  return reference;
}

/// f16 activations: y is rounded to f16, and kernels may round each weight to f16 before they multiply. Roundings of
/// single weights are independent: their sum has a standard deviation of about 0.4 x 2^-11 of the spread, of which 15
/// are allowed; one wrong weight in a row of 10,000 is beyond that. An input that E4M3 rounds to the other neighbour,
/// where it lies halfway, is within. Sums are f32, as is everything with f32 activations.
double error_bound(const ExpectedValue& expected, Precision precision) {
  const double sums = 2e-6 * expected.magnitude + 1e-7;
  if (precision == Precision::Exact) return sums;
  return 0x1p-11 * (1.01 * std::abs(expected.y) + 6 * expected.spread) + sums;
}

/// An output on the device with poison in and behind it.
class PoisonedOutput {
 public:
  PoisonedOutput(std::int64_t max_tokens, std::int64_t out, const ActivationFormat& format)
      : format_(format),
        dtype_(format.kind == ActivationKind::F32 ? DType::F32 : DType::F16),
        out_(out),
        buffer_(cuda::device_buffer(bytes(max_tokens) + kGuardBytes)) {}

  Activation poisoned(std::int64_t num_tokens) {
    poison(buffer_.data(), bytes(num_tokens) + kGuardBytes, nullptr);
    Activation y;
    y.format = format_;
    y.values =
        Tensor(Buffer::borrowed(buffer_.data(), bytes(num_tokens), buffer_.device()), dtype_, {num_tokens, out_});
    return y;
  }
  const void* data() const { return buffer_.data(); }
  int element_bytes() const { return static_cast<int>(size_bytes(dtype_)); }

  std::vector<float> read_token(std::int64_t token) const {
    std::vector<std::byte> raw(bytes(1));
    cuda::check(cudaMemcpy(raw.data(), static_cast<const std::byte*>(buffer_.data()) + bytes(token), raw.size(),
                           cudaMemcpyDeviceToHost));
    std::vector<float> values(static_cast<std::size_t>(out_));
    to_float32(raw.data(), dtype_, out_, values.data());
    return values;
  }

 private:
  std::size_t bytes(std::int64_t num_tokens) const {
    return static_cast<std::size_t>(num_tokens * out_) * size_bytes(dtype_);
  }

  ActivationFormat format_;
  DType dtype_;
  std::int64_t out_;
  Buffer buffer_;
};

/// Everything about one linear while it is checked.
class LinearCheck {
 public:
  LinearCheck(std::string name, const Linear& linear, const Reference& reference, Backend& backend, Precision precision,
              std::int64_t max_tokens)
      : name_(std::move(name)),
        linear_(linear),
        reference_(reference),
        precision_(precision),
        first_(max_tokens, linear.out_features(), backend.hidden_format()),
        second_(max_tokens, linear.out_features(), backend.hidden_format()) {}

  void run(Activation& x, std::int64_t num_tokens, LinearReport& report) {
    x.num_tokens = num_tokens;
    for (PoisonedOutput* output : {&first_, &second_}) {
      Activation y = output->poisoned(num_tokens);
      cuda::check(cudaDeviceSynchronize());  // the backend has its own stream
      linear_.forward(x, y);
      cuda::check(cudaDeviceSynchronize());
    }
    ++report.num_products;
    const OutputFaults faults =
        compare_outputs(first_.data(), second_.data(), static_cast<std::size_t>(num_tokens * linear_.out_features()),
                        first_.element_bytes(), kGuardBytes, nullptr);
    if (faults.not_finite + faults.different + faults.beyond > 0) {
      fault(report, "%s, %lld tokens: %llu not written or not finite, %llu differ from run to run, %llu bytes beyond",
            static_cast<long long>(num_tokens), static_cast<unsigned long long>(faults.not_finite),
            static_cast<unsigned long long>(faults.different), static_cast<unsigned long long>(faults.beyond));
    }
    compare(num_tokens, report);
  }

 private:
  void compare(std::int64_t num_tokens, LinearReport& report) {
    const Samples& samples = reference_.samples;
    for (std::size_t t = 0; t < samples.tokens.size() && samples.tokens[t] < num_tokens; ++t) {
      const std::vector<float> y = first_.read_token(samples.tokens[t]);
      for (std::size_t r = 0; r < samples.rows.size(); ++r) {
        const ExpectedValue& expected = reference_.at(t, r);
        const double actual = y[static_cast<std::size_t>(samples.rows[r])];
        const double error = std::abs(actual - expected.y) / error_bound(expected, precision_);
        if (error > report.worst) {
          report.worst = error;
          report.worst_at = name_;
        }
        if (error <= 1) continue;  // NaN goes on
        fault(report, "%s, %lld tokens: token %lld output %lld is %.7g, not %.7g (%.2f of the bound)",
              static_cast<long long>(num_tokens), static_cast<long long>(samples.tokens[t]),
              static_cast<long long>(samples.rows[r]), actual, expected.y, error);
      }
    }
  }

  template <class... Args>
  void fault(LinearReport& report, const char* format, Args... args) {
    ++report.num_faults;
    if (++num_printed_ <= kMaxPrinted) {
      std::printf("FAULT ");
      std::printf(format, name_.c_str(), args...);
      std::printf("\n");
    }
  }

  std::string name_;
  const Linear& linear_;
  const Reference& reference_;
  Precision precision_;
  PoisonedOutput first_;
  PoisonedOutput second_;
  std::int64_t num_printed_ = 0;
};

std::vector<weights::LinearPart> copies_of(const std::vector<weights::LinearPart>& parts) {
  std::vector<weights::LinearPart> copies;
  for (const auto& part : parts) {
    copies.push_back({weights::slice_outputs(part.weights, 0, weights::out_features(part.weights)), {}});
  }
  return copies;
}

}  // namespace

void LinearReport::add(const LinearReport& other) {
  num_products += other.num_products;
  num_faults += other.num_faults;
  seconds += other.seconds;
  if (other.worst <= worst) return;
  worst = other.worst;
  worst_at = other.worst_at;
}

Sweep::Sweep() : noise_(pool_), tokens_(Tensor::empty(DType::F16, {kMaxTokens, kWidestInput})) {
  const Tensor signs = noise_.halves({kMaxTokens * kWidestInput});
  // Magnitudes from 2^-6 to 4, as normed activations have them: the exponent moves by 0 to 7.
  pool_.run(kMaxTokens, [&](std::int64_t row, int) {
    for (std::int64_t i = row * kWidestInput; i < (row + 1) * kWidestInput; ++i) {
      const std::uint16_t bits = signs.span<Half>()[static_cast<std::size_t>(i)].bits;
      const auto exponent = static_cast<std::uint16_t>(((bits >> 2) & 7u) << 10);
      tokens_.span<Half>()[static_cast<std::size_t>(i)].bits = static_cast<std::uint16_t>(bits + exponent);
    }
  });
  fast_ = cuda::make_cuda_backend({.fp8_activations = Fp8Activations::Float});
  rounding_ = cuda::make_cuda_backend({.fp8_activations = Fp8Activations::Rounded});
  exact_ = cuda::make_cuda_backend({.precision = Precision::Exact, .fp8_activations = Fp8Activations::Float});
}

double Sweep::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

Activation& Sweep::input(Backend& backend, const ActivationFormat& format, std::int64_t in_features) {
  const auto [found, is_new] = inputs_.try_emplace({format.kind, in_features});
  if (!is_new) return found->second;
  Activation& x = found->second;
  x = backend.make_activation(kMaxTokens, in_features, format);
  const TensorView rows(tokens_.view().data(), DType::F16, {kMaxTokens, in_features});
  const Tensor values = to_dtype(rows, x.values.dtype());
  cuda::check(
      cudaMemcpy(x.values.mutable_view().data(), values.view().data(), values.size_bytes(), cudaMemcpyHostToDevice));
  return x;
}

LinearReport Sweep::run(const FusedShape& shape, const Method& method, const SweepExtent& extent) {
  LinearReport report;
  const std::string name = shape.name + " " + method.name;
  const double begin = seconds();
  std::vector<weights::LinearPart> parts;
  for (const std::int64_t out : shape.out_features) parts.push_back({method.make(out, shape.in_features, noise_), {}});
  const Reference reference =
      make_reference(parts, choose_samples(shape, extent, noise_), tokens_, method.rounded_run, pool_);
  const auto check = [&](Backend& backend, Precision precision, std::vector<weights::LinearPart> taken) {
    const auto linear = backend.make_linear(std::move(taken), {.name = name});
    LinearCheck linear_check(name, *linear, reference, backend, precision, extent.token_counts.back());
    Activation& x = input(backend, linear->input_format(), shape.in_features);
    for (const std::int64_t num_tokens : extent.token_counts) linear_check.run(x, num_tokens, report);
  };
  try {
    if (extent.is_whole && method.rounded_run == 0) check(*exact_, Precision::Exact, copies_of(parts));
    check(method.rounded_run > 0 ? *rounding_ : *fast_, Precision::Fast, std::move(parts));
  } catch (const Error& error) {
    ++report.num_faults;
    std::printf("FAULT %s: %s\n", name.c_str(), error.what());
  }
  report.seconds = seconds() - begin;
  return report;
}

}  // namespace nibble::backend::test
