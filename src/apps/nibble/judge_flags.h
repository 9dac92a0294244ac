#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>

#include "workflow/quantize_and_judge.h"

namespace nibble::apps {

/// Registers --judge, --judge-text, --judge-windows, --judge-window-len and --max-kl. The result gives what they say
/// once they are parsed, while `command` lives: nothing where none of them was given.
std::function<std::optional<workflow::JudgeOptions>()> add_judge_flags(CLI::App& command);

/// Whether a flag of `nibble quantize` is about judging, so that the written tensors do not depend on it.
bool is_judge_flag(const CLI::Option& option);

}  // namespace nibble::apps
