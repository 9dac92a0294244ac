#include "apps/nibble/flags.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

namespace nibble::apps {
namespace {

std::optional<double> parse_number(std::string_view text) {
  double value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::optional<std::int64_t> parse_human_count(std::string_view text) {
  if (text == "auto" || text == "-1") return 0;
  if (text.empty()) return std::nullopt;
  constexpr std::string_view kSuffixes = "kmgt";
  double unit = 1;
  const char last = text.back();
  const bool is_binary = last >= 'A' && last <= 'Z';
  const auto power = kSuffixes.find(is_binary ? static_cast<char>(last + 32) : last);
  if (power != std::string_view::npos) {
    unit = std::pow(is_binary ? 1024.0 : 1000.0, static_cast<double>(power + 1));
    text.remove_suffix(1);
  }
  const auto value = parse_number(text);
  if (!value || *value < 0) return std::nullopt;
  const double count = std::round(*value * unit * 1e6) / 1e6;
  if (count != std::floor(count) || count >= 0x1p62) return std::nullopt;
  return static_cast<std::int64_t>(count);
}

}  // namespace

void add_engine_flags(CLI::App& command, engine::EngineOptions& engine) {
  command.add_option("--device", engine.device, "where to run")
      ->check(CLI::IsMember({"auto", "cpu", "reference", "cuda"}))
      ->capture_default_str();
  command.add_flag("--exact", engine.exact, "f32 activations and KV cache");
  command.add_option("--quantization,-q", engine.quantization,
                     "fp8: quantize a float model while loading; else what the checkpoint is");
  command.add_option("--kv-cache-dtype", engine.kv_cache_dtype, "auto, fp8, fp8_e4m3, float16 or bfloat16")
      ->capture_default_str();
  command
      .add_option("--activations", engine.activations, "inputs of FP8 weights: auto, float or fp8 (rounded to E4M3)")
      ->check(CLI::IsMember({"auto", "float", "fp8"}))
      ->capture_default_str();
  command.add_option("--dtype", engine.dtype, "auto, half, float16, bfloat16, float or float32")->capture_default_str();
  command.add_option("--threads", engine.num_threads, "CPU threads; 0: all")->check(between(0, kMaxThreads));
  command.add_option("--load-format", engine.load_format, "auto, safetensors, gguf or dummy")->capture_default_str();
  command.add_flag("--enforce-eager,!--no-enforce-eager", engine.enforce_eager,
                   "no CUDA graphs: every step launches its kernels one by one");
  command.add_flag("--async-scheduling,!--no-async-scheduling", engine.async_scheduling,
                   "launch a GPU's next step before the last one's tokens are read (default: on)");
  command.add_option("--max-model-len", engine.max_model_len, "context length (8192, 8k, 25.6k); default: config.json")
      ->transform(human_count());
}

CLI::Validator not_empty() {
  return CLI::Validator([](std::string& text) { return text.empty() ? std::string("names no folder") : std::string(); },
                        "");
}

CLI::Validator at_least(double low) {
  return CLI::Validator(
      [low](std::string& text) {
        const auto value = parse_number(text);
        return value && *value >= low ? std::string() : fmt::format("{} is no number of at least {}", text, low);
      },
      "");
}

CLI::Validator between(double low, double high) {
  return CLI::Validator(
      [low, high](std::string& text) {
        const auto value = parse_number(text);
        const bool is_inside = value && *value >= low && *value <= high;
        return is_inside ? std::string() : fmt::format("{} is no number between {} and {}", text, low, high);
      },
      "");
}

CLI::Validator human_count() {
  return CLI::Validator(
      [](std::string& text) {
        const auto count = parse_human_count(text);
        if (!count) return fmt::format("{} is no count (examples: 4096, 4k, 32K, 25.6k)", text);
        text = std::to_string(*count);
        return std::string();
      },
      "COUNT");
}

}  // namespace nibble::apps
