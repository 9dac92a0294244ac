#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "quantize/excerpts.h"
#include "tokenizer/tokenizer.h"

/// Calibration data: text → samples of token ids.
namespace nibble::quantize {

struct CalibrationOptions {
  std::vector<std::string> sources = {"self"};  // .txt and .jsonl files, or "self": the model writes its own samples
  std::int64_t num_samples = 128;
  std::int64_t seq_len = 512;
  std::uint64_t seed = 0;
};

/// tokens i32 [num_samples, seq_len]
struct CalibrationSamples {
  std::vector<std::int32_t> tokens;
  std::int64_t num_samples = 0;
  std::int64_t seq_len = 0;
  std::span<const std::int32_t> sample(std::int64_t i) const {
    return std::span(tokens).subspan(static_cast<std::size_t>(i * seq_len), static_cast<std::size_t>(seq_len));
  }
};

/// "a.txt, b.jsonl"
std::string describe_sources(const CalibrationOptions& options);

/// Cuts each of the token streams `files` into windows of seq_len, none of which spans two, and draws num_samples of
/// all windows without replacement, in the order of the text; the draw depends on the seed alone. Fewer windows than
/// asked for: all of them, with a warning. Errors: InvalidArgument naming the sources where not even one window is
/// full.
CalibrationSamples draw_samples(std::span<const std::vector<std::int32_t>> files, const CalibrationOptions& options);

/// The next num_windows of the same draw: windows that are none of the samples, in the order of the text, to judge a
/// model on. Fewer are left: all of those, which may be none.
CalibrationSamples draw_held_out(std::span<const std::vector<std::int32_t>> files, const CalibrationOptions& options,
                                 std::int64_t num_windows);

/// The model's own tokenizer. Errors: NotFound without a tokenizer.json; as Tokenizer::from_json.
std::unique_ptr<tokenizer::Tokenizer> load_tokenizer(const formats::Checkpoint& checkpoint);

/// The tokens of an excerpt's text. A .jsonl file holds an object a line, {"text": …} or {"messages": […]}; messages go
/// through the model's chat template. Any other file is plain text. Errors: NotFound; InvalidArgument with the line.
std::vector<std::int32_t> tokenize_excerpt(const Excerpt& excerpt, const formats::Checkpoint& checkpoint,
                                           const tokenizer::Tokenizer& tokenizer);

/// The model's own text: num_samples continuations at temperature 1, from its BOS token and from random tokens by
/// turns. Errors: whatever the engine reports.
CalibrationSamples write_own_samples(const std::filesystem::path& model, const CalibrationOptions& options,
                                     int num_threads);

/// What of the files in `options.sources` is read.
std::vector<Excerpt> choose_excerpts(const CalibrationOptions& options);

/// From files or from the model itself, as `options.sources` says.
CalibrationSamples make_samples(const formats::Checkpoint& checkpoint, const CalibrationOptions& options,
                                int num_threads);

/// draw_held_out from the files of `options.sources`.
CalibrationSamples make_held_out(const formats::Checkpoint& checkpoint, const CalibrationOptions& options,
                                 std::int64_t num_windows);

}  // namespace nibble::quantize
