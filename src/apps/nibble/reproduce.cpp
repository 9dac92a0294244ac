#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

#include "apps/nibble/flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/quantize_flags.h"
#include "apps/nibble/subcommands.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "quantize/pipeline.h"
#include "quantize/report.h"

namespace nibble::apps {
namespace {

constexpr int kSame = 0;
constexpr int kDiffers = 3;

struct ReproduceFlags {
  std::filesystem::path folder;
  std::string model;
  std::string calibration;
  std::filesystem::path output;
  int num_threads = 0;
};

/// The recorded flags, read as if they had just been typed.
quantize::PipelineOptions recorded_options(const quantize::Report& report, const ReproduceFlags& flags,
                                           const std::filesystem::path& output) {
  std::vector<std::string> arguments = {"--model", flags.model.empty() ? report.model : flags.model, "--output",
                                        output.string()};
  arguments.insert(arguments.end(), report.arguments.begin(), report.arguments.end());
  if (!flags.calibration.empty()) {
    const auto at = std::ranges::find(arguments, std::string("--calibration"));
    if (at == arguments.end()) arguments.insert(arguments.end(), {"--calibration", ""});
    *std::next(std::ranges::find(arguments, std::string("--calibration"))) = flags.calibration;
  }
  CLI::App command;
  const auto options = add_quantize_flags(command);
  std::ranges::reverse(arguments);  // CLI11 takes them last first
  try {
    command.parse(arguments);
  } catch (const CLI::ParseError& error) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("{}: its arguments are not those of this nibble: {}", quantize::kReportFile, error.what()));
  }
  quantize::PipelineOptions recorded = options();
  recorded.num_threads = flags.num_threads;
  return recorded;
}

/// Names of the files directly in a folder, sorted; the report itself tells times, which differ.
std::vector<std::string> compared_files(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && name != quantize::kReportFile && name != quantize::kReportPage) {
      names.push_back(name);
    }
  }
  std::ranges::sort(names);
  return names;
}

bool same_content(const std::filesystem::path& a, const std::filesystem::path& b) {
  if (!std::filesystem::exists(a) || !std::filesystem::exists(b)) return false;
  const MappedFile left = MappedFile::open(a);
  const MappedFile right = MappedFile::open(b);
  return std::ranges::equal(left.bytes(), right.bytes());
}

int run_reproduce(const ReproduceFlags& flags) {
  const quantize::Report report = quantize::read_report(flags.folder);
  std::filesystem::path output = flags.output;
  if (output.empty()) {
    output = flags.folder;
    if (!output.has_filename()) output = output.parent_path();
    output += ".reproduced";
  }
  quantize::run_pipeline(recorded_options(report, flags, output));
  std::vector<std::string> names = compared_files(flags.folder);
  std::vector<std::string> differing;
  for (const std::string& name : compared_files(output)) {
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  }
  for (const std::string& name : names) {
    if (!same_content(flags.folder / name, output / name)) differing.push_back(name);
  }
  if (differing.empty()) {
    print(fmt::format("{}: {} files made again, byte for byte the same\n", flags.folder.string(), names.size()));
    if (flags.output.empty()) std::filesystem::remove_all(output);
    return kSame;
  }
  print(fmt::format("{}: {} of {} files differ from what was made again in {}: {}\n", flags.folder.string(),
                    differing.size(), names.size(), output.string(), fmt::join(differing, ", ")));
  if (const Json now = quantize::read_report(output).identity; now != report.identity) {
    print(fmt::format("the record says {}\n       now it is {}\n", report.identity.dump(), now.dump()));
  }
  return kDiffers;
}

}  // namespace

std::function<int()> add_reproduce(CLI::App& command) {
  auto flags = std::make_shared<ReproduceFlags>();
  command.add_option("DIR", flags->folder, "a checkpoint that nibble quantize wrote")->required()->type_name("");
  command.add_option("--model", flags->model, "the float model, where it lies elsewhere now")->type_name("MODEL");
  command.add_option("--calibration", flags->calibration, "the calibration text, where it lies elsewhere now")
      ->type_name("FILE");
  command.add_option("--output,-o", flags->output, "keep what was made here; default: only where it differs")
      ->check(not_empty())
      ->type_name("DIR");
  command.add_option("--threads", flags->num_threads, "CPU threads; 0: all")->check(CLI::NonNegativeNumber);
  command.footer("Exit codes: 0 the same, 1 error, 2 usage, 3 it differs.");
  return [flags] { return run_reproduce(*flags); };
}

}  // namespace nibble::apps
