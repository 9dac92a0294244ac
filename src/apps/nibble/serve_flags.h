#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/http.h"
#include "server/openai/serving.h"
#include "server/routes.h"

namespace nibble::apps {

/// What `nibble serve` is told, spelt as vLLM spells it.
struct ServeFlags {
  std::string model;
  std::string chat_template;               // a file or the template itself
  std::string generation_config = "auto";  // auto, vllm or a folder
  std::string override_generation_config;  // JSON
  std::int64_t tensor_parallel_size = 1;
  std::int64_t pipeline_parallel_size = 1;
  std::int64_t data_parallel_size = 1;
  double shutdown_timeout = 3;  // seconds that running requests get on SIGTERM
  bool disable_access_log = false;
  engine::EngineOptions engine;
  server::HttpOptions http;
  server::AccessOptions access;
  server::openai::ApiOptions api;
  std::map<std::string, const CLI::Option*> without_effect;  // flags of vLLM that are accepted and ignored
};

/// Registers every flag on `command`; `flags` must live until it has been parsed.
void register_serve_flags(CLI::App& command, ServeFlags& flags);

/// Checks that need several flags or no CLI11: parallel sizes, environment keys, names. Warns about flags that have no
/// effect. Errors: InvalidArgument, Unsupported naming the flag.
void finish_serve_flags(ServeFlags& flags);

}  // namespace nibble::apps
