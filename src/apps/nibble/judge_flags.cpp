#include "apps/nibble/judge_flags.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "apps/nibble/flags.h"

namespace nibble::apps {
namespace {

constexpr const char* kGroup = "Judging";

}  // namespace

std::function<std::optional<workflow::JudgeOptions>()> add_judge_flags(CLI::App& command) {
  struct Values {
    bool judge = false;
    workflow::JudgeOptions options;
  };
  auto values = std::make_shared<Values>();
  workflow::JudgeOptions& options = values->options;
  command
      .add_flag("--judge", values->judge,
                "then measure what it cost: KL and perplexity against MODEL, one block at a time")
      ->group(kGroup);
  const std::vector<const CLI::Option*> that_imply_it = {
      command
          .add_option("--judge-text", options.text_files,
                      "text to judge on, several files by repeating it [calibration text that no sample holds]")
          ->type_name("FILE")
          ->allow_extra_args(false)
          ->group(kGroup),
      command
          .add_option("--judge-windows", options.num_windows,
                      "how many windows of it [an eighth of the calibration tokens, at least 2048 tokens]")
          ->check(at_least(1))
          ->group(kGroup),
      command
          .add_option("--judge-window-len", options.window_len,
                      "tokens a window of --judge-text [2048 or the model's context]")
          ->check(between(2, 0x1p31))
          ->group(kGroup),
      command.add_option("--max-kl", options.max_kl, "largest KL that is accepted; a larger one ends with exit code 3")
          ->type_name("NATS")
          ->group(kGroup)};
  return [values, that_imply_it]() -> std::optional<workflow::JudgeOptions> {
    const bool is_asked =
        values->judge || std::ranges::any_of(that_imply_it, [](const CLI::Option* flag) { return flag->count() > 0; });
    return is_asked ? std::optional(values->options) : std::nullopt;
  };
}

bool is_judge_flag(const CLI::Option& option) {
  return option.get_group() == kGroup;
}

}  // namespace nibble::apps
