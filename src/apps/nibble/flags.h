#pragma once

#include <CLI/CLI.hpp>

#include "engine/engine.h"

namespace nibble::apps {

/// How a model is loaded and run, the same for every subcommand that does: --device, --exact, --dtype,
/// --quantization, --kv-cache-dtype, --activations, --threads, --load-format, --max-model-len. `engine` must live until
/// `command` has been parsed.
void add_engine_flags(CLI::App& command, engine::EngineOptions& engine);

/// Most threads of --threads: each is a thread of the system, whether or not there is a core for it.
constexpr double kMaxThreads = 1024;

// Checks of a flag's text; unlike CLI11's own they let no NaN through and name only the bounds that exist.
/// Refuses "", which CLI11 takes for a path.
CLI::Validator not_empty();
CLI::Validator at_least(double low);
CLI::Validator between(double low, double high);
/// "1k" = 1000, "1K" = 1024, "25.6k" = 25600, likewise m/M, g/G, t/T, as vLLM reads them; "auto" and -1 are 0. Used as
/// a transform: it hands the number on.
CLI::Validator human_count();

}  // namespace nibble::apps
