#pragma once

#include <span>

namespace nibble::eval {

/// NaN without samples. Summed in order, in f64.
double mean(std::span<const double> samples);

/// Standard error of the mean, sample standard deviation / sqrt(n), as lm-eval reports it. NaN below two samples.
double standard_error(std::span<const double> samples);

/// Standard error of the mean of a[i] - b[i]: what two models on the same items really tell apart. Same length.
double paired_standard_error(std::span<const double> a, std::span<const double> b);

}  // namespace nibble::eval
