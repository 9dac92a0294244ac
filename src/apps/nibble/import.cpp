#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <memory>

#include "apps/nibble/flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "core/progress.h"
#include "formats/import_gguf.h"

namespace nibble::apps {

std::function<int()> add_import(CLI::App& command) {
  struct Flags {
    std::filesystem::path gguf;
    std::filesystem::path output;
  };
  const auto flags = std::make_shared<Flags>();  // shared with CLI11's options
  command.add_option("GGUF", flags->gguf, "GGUF file")->required();
  command.add_option("--output", flags->output, "folder to write, must not hold a checkpoint")
      ->check(not_empty())
      ->required();
  return [flags] {
    std::unique_ptr<Progress> progress;
    formats::ImportOptions options{flags->gguf, flags->output};
    options.on_tensor = [&](std::int64_t done, std::int64_t total) {
      if (!progress) progress = std::make_unique<Progress>("Importing", total, "tensors");
      progress->update(done);
    };
    const std::int64_t bytes = formats::import_gguf(options);
    progress.reset();
    print(fmt::format("{}: FP16 checkpoint, {}\n", flags->output.string(), format_bytes(static_cast<double>(bytes))));
    return 0;
  };
}

}  // namespace nibble::apps
