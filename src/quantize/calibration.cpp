#include "quantize/calibration.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <utility>

#include "core/json.h"
#include "core/log.h"
#include "tokenizer/chat_template.h"

namespace nibble::quantize {
namespace {

Json tokenizer_config(const formats::Checkpoint& checkpoint) {
  const auto text = checkpoint.side_file("tokenizer_config.json");
  return text ? parse_json(*text, "tokenizer_config.json") : Json();
}

/// Renders conversations as the model saw them in training.
class Conversations {
 public:
  Conversations(const formats::Checkpoint& checkpoint, const tokenizer::Tokenizer& tokenizer) {
    choice_ = tokenizer::choose_chat_template(
        "", checkpoint.side_file("chat_template.jinja").value_or(""), tokenizer_config(checkpoint),
        get_or<std::string>(checkpoint.config(), "model_type", ""), checkpoint.path().filename().string(),
        tokenizer.token_id("<|im_start|>").has_value());
    if (choice_.is_fallback) log::warning("the checkpoint has no chat template: using {}", choice_.origin);
    options_.add_generation_prompt = false;
    options_.bos_token = tokenizer.bos_token();
    options_.eos_token = tokenizer.eos_token();
  }
  std::string render(const Json& messages) const { return choice_.chat_template->render(messages, options_); }

 private:
  tokenizer::ChatTemplateChoice choice_;
  tokenizer::ChatTemplate::Options options_;
};

void append(std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
}

std::vector<std::int32_t> tokenize_json_lines(std::string_view text, const Excerpt& excerpt,
                                              const formats::Checkpoint& checkpoint,
                                              const tokenizer::Tokenizer& tokenizer) {
  const std::string origin = excerpt.is_whole ? "" : fmt::format(" behind byte {}", excerpt.begin);
  std::unique_ptr<Conversations> conversations;
  std::vector<std::int32_t> tokens;
  std::int64_t line_number = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{} line {}{}", excerpt.file.string(), line_number, origin);
    const Json object = parse_json(line, where);
    if (object.is_object() && object.contains("messages")) {
      if (!conversations) conversations = std::make_unique<Conversations>(checkpoint, tokenizer);
      append(tokens, tokenizer.encode(conversations->render(object["messages"]), /*add_special_tokens=*/false));
    } else if (object.is_object() && object.contains("text")) {
      append(tokens, tokenizer.encode(get<std::string>(object, "text")));
    } else {
      throw Error(ErrorCode::InvalidArgument,
                  where + R"(: expected {"text": "…"} or {"messages": [{"role": …, "content": …}]})");
    }
  }
  return tokens;
}

/// Windows of seq_len, none of which spans two texts.
std::vector<std::span<const std::int32_t>> cut_windows(std::span<const std::vector<std::int32_t>> files,
                                                       std::int64_t seq_len) {
  const auto len = static_cast<std::size_t>(seq_len);
  std::vector<std::span<const std::int32_t>> windows;
  for (const std::vector<std::int32_t>& file : files) {
    for (std::size_t end = len; end <= file.size(); end += len) {
      windows.push_back(std::span(file).subspan(end - len, len));
    }
  }
  return windows;
}

/// The windows named, in the order of the text.
CalibrationSamples gather(const std::vector<std::span<const std::int32_t>>& windows, std::vector<std::int64_t> indices,
                          std::int64_t seq_len) {
  std::ranges::sort(indices);
  CalibrationSamples samples;
  samples.num_samples = static_cast<std::int64_t>(indices.size());
  samples.seq_len = seq_len;
  for (const std::int64_t idx : indices) {
    const auto window = windows[static_cast<std::size_t>(idx)];
    samples.tokens.insert(samples.tokens.end(), window.begin(), window.end());
  }
  return samples;
}

std::vector<std::vector<std::int32_t>> tokenize_sources(const formats::Checkpoint& checkpoint,
                                                        const CalibrationOptions& options) {
  const auto tokenizer = load_tokenizer(checkpoint);
  const std::vector<Excerpt> excerpts = choose_excerpts(options);
  if (std::ranges::any_of(excerpts, [](const Excerpt& excerpt) { return !excerpt.is_whole; })) {
    log::info("{}: reading {} excerpts drawn from all over the text", describe_sources(options), excerpts.size());
  }
  std::vector<std::vector<std::int32_t>> texts;
  for (const Excerpt& excerpt : excerpts) texts.push_back(tokenize_excerpt(excerpt, checkpoint, *tokenizer));
  return texts;
}

}  // namespace

CalibrationSamples make_samples(const formats::Checkpoint& checkpoint, const CalibrationOptions& options,
                                int num_threads) {
  if (options.sources.front() == "self") return write_own_samples(checkpoint.path(), options, num_threads);
  return draw_samples(tokenize_sources(checkpoint, options), options);
}

CalibrationSamples make_held_out(const formats::Checkpoint& checkpoint, const CalibrationOptions& options,
                                 std::int64_t num_windows) {
  return draw_held_out(tokenize_sources(checkpoint, options), options, num_windows);
}

std::string describe_sources(const CalibrationOptions& options) {
  return fmt::format("{}", fmt::join(options.sources, ", "));
}

std::unique_ptr<tokenizer::Tokenizer> load_tokenizer(const formats::Checkpoint& checkpoint) {
  const auto text = checkpoint.side_file("tokenizer.json");
  if (!text) {
    throw Error(ErrorCode::NotFound,
                fmt::format("{}: tokenizer.json is missing; calibration text cannot be tokenized without it",
                            checkpoint.path().string()));
  }
  return tokenizer::Tokenizer::from_json(*text, tokenizer_config(checkpoint));
}

std::vector<Excerpt> choose_excerpts(const CalibrationOptions& options) {
  return choose_excerpts(options.sources, excerpt_options(options.num_samples, options.seq_len, options.seed));
}

std::vector<std::int32_t> tokenize_excerpt(const Excerpt& excerpt, const formats::Checkpoint& checkpoint,
                                           const tokenizer::Tokenizer& tokenizer) {
  const std::string text = read_excerpt(excerpt);
  if (excerpt.file.extension() == ".jsonl") return tokenize_json_lines(text, excerpt, checkpoint, tokenizer);
  return tokenizer.encode(text, /*add_special_tokens=*/excerpt.begin == 0);  // BOS stands where a text begins
}

CalibrationSamples draw_samples(std::span<const std::vector<std::int32_t>> files, const CalibrationOptions& options) {
  const auto windows = cut_windows(files, options.seq_len);
  const auto num_windows = static_cast<std::int64_t>(windows.size());
  std::int64_t num_tokens = 0;
  for (const std::vector<std::int32_t>& file : files) num_tokens += static_cast<std::int64_t>(file.size());
  if (num_windows == 0) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("{}: {} tokens are less than one sample of {}; give more text or a smaller --seq-len",
                            describe_sources(options), num_tokens, options.seq_len));
  }
  const std::int64_t num_samples = std::min(num_windows, options.num_samples);
  if (num_samples < options.num_samples) {
    log::warning("{}: {} tokens give {} samples of {}, not the {} asked for", describe_sources(options), num_tokens,
                 num_samples, options.seq_len, options.num_samples);
  }
  return gather(windows, draw(num_windows, num_samples, options.seed), options.seq_len);
}

CalibrationSamples draw_held_out(std::span<const std::vector<std::int32_t>> files, const CalibrationOptions& options,
                                 std::int64_t num_windows) {
  const auto windows = cut_windows(files, options.seq_len);
  const auto available = static_cast<std::int64_t>(windows.size());
  const std::int64_t num_samples = std::min(available, options.num_samples);
  // A permutation's first windows do not depend on how many of it are asked for.
  std::vector<std::int64_t> drawn = draw(available, std::min(available, num_samples + num_windows), options.seed);
  drawn.erase(drawn.begin(), drawn.begin() + num_samples);
  return gather(windows, std::move(drawn), options.seq_len);
}

}  // namespace nibble::quantize
