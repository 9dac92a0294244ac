#include "formats/inspect.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "core/progress.h"
#include "hub/hub.h"
#include "models/config_summary.h"

namespace nibble::apps {
namespace {

std::string bytes_text(std::int64_t bytes) {
  return format_bytes(static_cast<double>(bytes));
}

/// "model.layers.*.mlp.up_proj.weight": tensors that differ in numbers only stand on one line.
std::string with_stars(const std::string& name) {
  std::string pattern;
  std::size_t begin = 0;
  while (begin <= name.size()) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool is_number = !part.empty() && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
    pattern += (begin > 0 ? "." : "") + (is_number ? "*" : part);
    begin = end + 1;
  }
  return pattern;
}

struct Line {
  std::string name;
  std::string type;
  std::string shape;
  std::int64_t count = 0;
  std::int64_t bytes = 0;
};

enum class Detail : std::uint8_t { ByPattern, EveryTensor };

std::vector<Line> tensor_lines(const formats::ModelSummary& summary, Detail detail) {
  std::vector<Line> lines;
  for (const formats::TensorSummary& tensor : summary.tensors) {
    const std::string name = detail == Detail::EveryTensor ? tensor.name : with_stars(tensor.name);
    const std::string shape = fmt::format("[{}]", fmt::join(tensor.sizes, ", "));
    const auto same = std::ranges::find_if(
        lines, [&](const Line& line) { return line.name == name && line.type == tensor.type && line.shape == shape; });
    if (detail == Detail::ByPattern && same != lines.end()) {
      same->count += 1;
      same->bytes += tensor.size_bytes;
    } else {
      lines.push_back({name, tensor.type, shape, 1, tensor.size_bytes});
    }
  }
  return lines;
}

double bits_a_weight(std::int64_t bytes, std::int64_t weights) {
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(std::max<std::int64_t>(weights, 1));
}

std::string render(const formats::ModelSummary& summary, Detail detail) {
  std::string text = fmt::format(
      "architecture  {}\ncontainer     {}, {} tensors, {}\nquantization  {}\nweights       {}, {:.2f} bits each\n",
      summary.architecture.empty() ? "(none named)" : summary.architecture, summary.container, summary.tensors.size(),
      bytes_text(summary.size_bytes), summary.method, summary.num_weights,
      bits_a_weight(summary.size_bytes, summary.num_weights));
  text += "\nlinears\n";
  for (const formats::LinearSummary& linear : summary.linears) {
    text += fmt::format("  {:<32} {:>5} linears {:>12} weights {:>6.2f} bits each {:>10}\n", linear.form,
                        linear.num_linears, linear.num_weights, bits_a_weight(linear.size_bytes, linear.num_weights),
                        bytes_text(linear.size_bytes));
  }
  text += "\ntensors\n";
  const std::vector<Line> lines = tensor_lines(summary, detail);
  std::size_t width = 0;
  for (const Line& line : lines) width = std::max(width, line.name.size());
  for (const Line& line : lines) {
    text += fmt::format("  {:<{}} {:>5} {:<8} {:<18} {:>10}\n", line.name, width,
                        line.count > 1 ? fmt::format("x{}", line.count) : "", line.type, line.shape,
                        bytes_text(line.bytes));
  }
  return text;
}

/// A folder with config.json and no file of weights.
bool is_config_alone(const std::filesystem::path& model) {
  if (!std::filesystem::is_directory(model) || !std::filesystem::exists(model / "config.json")) return false;
  constexpr std::array<std::string_view, 5> kWeights{".safetensors", ".bin", ".pt", ".pth", ".gguf"};
  return std::ranges::none_of(std::filesystem::directory_iterator(model), [&](const auto& entry) {
    return std::ranges::find(kWeights, entry.path().extension().string()) != kWeights.end() ||
           entry.path().filename().string().ends_with(".index.json");
  });
}

formats::ModelSummary summarize(const std::filesystem::path& model) {
  return is_config_alone(model) ? models::summarize_config(model) : formats::summarize(model);
}

}  // namespace

std::function<int()> add_inspect(CLI::App& command) {
  struct Flags {
    std::string model;
    bool json = false;
    bool tensors = false;
  };
  const auto flags = std::make_shared<Flags>();  // shared with CLI11's options
  command
      .add_option("MODEL", flags->model,
                  "folder, GGUF file or Hub name; of a folder with config.json alone, what its files would hold")
      ->required()
      ->type_name("");
  command.add_flag("--json", flags->json, "everything, as JSON");
  command.add_flag("--tensors", flags->tensors, "a line for every tensor, not for every kind");
  return [flags] {
    const formats::ModelSummary summary = summarize(hub::resolve_model(flags->model));
    if (flags->json) {
      print(formats::to_json(summary).dump(2) + "\n");
    } else {
      print(render(summary, flags->tensors ? Detail::EveryTensor : Detail::ByPattern));
    }
    return 0;
  };
}

}  // namespace nibble::apps
