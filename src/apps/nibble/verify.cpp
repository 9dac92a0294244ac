#include "verify/verify.h"

#include <fmt/format.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "core/progress.h"
#include "hub/hub.h"

namespace nibble::apps {
namespace {

constexpr int kRejected = 3;

std::string render(const verify::VerifyReport& report) {
  std::string text;
  for (const verify::Finding& finding : report.findings)
    text += fmt::format("{}: {}\n", finding.where, finding.problem);
  if (report.findings.empty()) {
    return fmt::format(
        "nothing wrong found: {} tensors, {} linears, {}\n", report.num_tensors, report.num_linears,
        report.text_loss ? fmt::format("{:.2f} nats a token in a text of {}", *report.text_loss, report.num_text_tokens)
                         : fmt::format("no text read ({})", report.no_forward_pass));
  }
  return text + fmt::format("{} finding{}\n", report.findings.size(), report.findings.size() == 1 ? "" : "s");
}

}  // namespace

std::function<int()> add_verify(CLI::App& command) {
  struct Flags {
    std::string model;
    bool json = false;
    bool skips_forward_pass = false;
    int num_threads = 0;
  };
  const auto flags = std::make_shared<Flags>();  // shared with CLI11's options
  command.add_option("MODEL", flags->model, "folder, GGUF file or Hub name")->required()->type_name("");
  command.add_flag("--json", flags->json, "the findings as JSON");
  command.add_flag("--no-forward", flags->skips_forward_pass,
                   "no short text through the model (some 5000 tokens of work), which the outermost layers need");
  command.add_option("--threads", flags->num_threads, "CPU threads; 0: all")->check(CLI::NonNegativeNumber);
  return [flags] {
    std::unique_ptr<Progress> progress;
    verify::VerifyOptions options{
        .model = hub::resolve_model(flags->model),
        .forward_pass = flags->skips_forward_pass ? verify::ForwardPass::Skip : verify::ForwardPass::Run,
        .num_threads = flags->num_threads};
    options.on_block = [&](std::string_view pass, std::int64_t done, std::int64_t total) {
      if (done == 1) progress = std::make_unique<Progress>(std::string(pass), total, "blocks");
      progress->update(done);
    };
    const verify::VerifyReport report = verify::verify_checkpoint(options);
    progress.reset();
    print(flags->json ? verify::to_json(report).dump(2) + "\n" : render(report));
    return report.findings.empty() ? 0 : kRejected;
  };
}

}  // namespace nibble::apps
