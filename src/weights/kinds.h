#pragma once

#include <string>

#include "weights/linear_weights.h"

/// What each canonical struct must answer; linear_weights.cpp dispatches, one .cpp file a struct implements. A new
/// struct that lacks one of these does not compile.
namespace nibble::weights {

std::int64_t out_features_of(const DenseWeights& w);
std::int64_t in_features_of(const DenseWeights& w);
std::int64_t size_bytes_of(const DenseWeights& w);
std::string describe_kind(const DenseWeights& w);
void validate_kind(const DenseWeights& w);
void dequantize_rows_of(const DenseWeights& w, std::int64_t first_row, Matrix<float> to);
DenseWeights slice_outputs_of(const DenseWeights& w, std::int64_t first, std::int64_t count);
DenseWeights slice_inputs_of(const DenseWeights& w, std::int64_t first, std::int64_t count);

std::int64_t out_features_of(const GroupedIntWeights& w);
std::int64_t in_features_of(const GroupedIntWeights& w);
std::int64_t size_bytes_of(const GroupedIntWeights& w);
std::string describe_kind(const GroupedIntWeights& w);
void validate_kind(const GroupedIntWeights& w);
void dequantize_rows_of(const GroupedIntWeights& w, std::int64_t first_row, Matrix<float> to);
GroupedIntWeights slice_outputs_of(const GroupedIntWeights& w, std::int64_t first, std::int64_t count);
GroupedIntWeights slice_inputs_of(const GroupedIntWeights& w, std::int64_t first, std::int64_t count);

std::int64_t out_features_of(const Fp8Weights& w);
std::int64_t in_features_of(const Fp8Weights& w);
std::int64_t size_bytes_of(const Fp8Weights& w);
std::string describe_kind(const Fp8Weights& w);
void validate_kind(const Fp8Weights& w);
void dequantize_rows_of(const Fp8Weights& w, std::int64_t first_row, Matrix<float> to);
Fp8Weights slice_outputs_of(const Fp8Weights& w, std::int64_t first, std::int64_t count);
Fp8Weights slice_inputs_of(const Fp8Weights& w, std::int64_t first, std::int64_t count);

std::int64_t out_features_of(const CodebookWeights& w);
std::int64_t in_features_of(const CodebookWeights& w);
std::int64_t size_bytes_of(const CodebookWeights& w);
std::string describe_kind(const CodebookWeights& w);
void validate_kind(const CodebookWeights& w);
void dequantize_rows_of(const CodebookWeights& w, std::int64_t first_row, Matrix<float> to);
CodebookWeights slice_outputs_of(const CodebookWeights& w, std::int64_t first, std::int64_t count);
CodebookWeights slice_inputs_of(const CodebookWeights& w, std::int64_t first, std::int64_t count);

// Shared by the implementations.
/// Rows [first, first + count) of a rank-1 or rank-2 tensor, copied; an empty tensor stays empty.
Tensor copy_rows(const Tensor& tensor, std::int64_t first, std::int64_t count);
/// Columns [first, first + count) of a rank-2 tensor, copied.
Tensor copy_columns(const Tensor& tensor, std::int64_t first, std::int64_t count);
/// Codes [first, first + count) of every row, repacked.
Tensor slice_code_columns(const Tensor& codes, std::int64_t in_features, std::int32_t bits, std::int64_t first,
                          std::int64_t count);
/// Errors: Corrupt "`what`: expected shape …, found …".
void expect_shape(const Tensor& tensor, const Shape& shape, const char* what);
/// Errors: Corrupt when a value is NaN or infinite.
void expect_finite(const Tensor& tensor, const char* what);

}  // namespace nibble::weights
