#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "apps/nibble/flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "core/progress.h"
#include "formats/convert.h"
#include "hub/hub.h"

namespace nibble::apps {

std::function<int()> add_convert(CLI::App& command) {
  struct Flags {
    std::string model;
    std::string format;
    std::filesystem::path output;
  };
  const auto flags = std::make_shared<Flags>();  // shared with CLI11's options
  command.add_option("MODEL", flags->model, "quantized folder or Hub name")->required()->type_name("");
  command.add_option("--format", flags->format, "gptq, gptq_v2, autoawq, compressed-tensors, fp8 or squeezellm")
      ->required()
      ->type_name("FORMAT");
  command.add_option("--output,-o", flags->output, "folder to write, must not hold a checkpoint")
      ->check(not_empty())
      ->required()
      ->type_name("DIR");
  return [flags] {
    std::unique_ptr<Progress> progress;
    formats::ConvertOptions options{hub::resolve_model(flags->model), flags->output, flags->format};
    options.on_module = [&](std::int64_t done, std::int64_t total) {
      if (!progress) progress = std::make_unique<Progress>("Converting", total, "linears");
      progress->update(done);
    };
    const formats::ConvertReport report = formats::convert_checkpoint(options);
    progress.reset();
    print(fmt::format("{}: {} linears from {} in the {} format, {}, the same numbers\n", flags->output.string(),
                      report.num_modules, report.from, flags->format,
                      format_bytes(static_cast<double>(report.output_bytes))));
    return 0;
  };
}

}  // namespace nibble::apps
