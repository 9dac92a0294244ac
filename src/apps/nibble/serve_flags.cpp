#include "apps/nibble/serve_flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <utility>

#include "apps/nibble/flags.h"
#include "core/error.h"
#include "core/json.h"
#include "core/log.h"

namespace nibble::apps {
namespace {

enum class Takes : std::uint8_t { Nothing, Value };

struct UnusedFlag {
  const char* name;
  Takes takes;
};

/// vLLM's flags that change nothing about the answers nibble can give: start scripts written for vLLM keep working.
constexpr UnusedFlag kUnusedFlags[] = {
    {"--additional-config", Takes::Value},
    {"--chat-template-content-format", Takes::Value},
    {"--code-revision", Takes::Value},
    {"--compilation-config,-O", Takes::Value},
    {"--config-format", Takes::Value},
    {"--cpu-offload-gb", Takes::Value},
    {"--disable-custom-all-reduce", Takes::Nothing},
    {"--disable-fastapi-docs", Takes::Nothing},
    {"--disable-log-stats", Takes::Nothing},
    {"--disable-log-requests", Takes::Nothing},
    {"--distributed-executor-backend", Takes::Value},
    {"--download-dir", Takes::Value},
    {"--enable-auto-tool-choice", Takes::Nothing},
    {"--enable-chunked-prefill,--no-enable-chunked-prefill", Takes::Nothing},
    {"--enable-expert-parallel", Takes::Nothing},
    {"--enable-log-outputs", Takes::Nothing},
    {"--enable-log-requests,--no-enable-log-requests", Takes::Nothing},
    {"--enable-lora", Takes::Nothing},
    {"--enable-server-load-tracking", Takes::Nothing},
    {"--enable-sleep-mode", Takes::Nothing},
    {"--enable-tokenizer-info-endpoint", Takes::Nothing},
    {"--guided-decoding-backend", Takes::Value},
    {"--hf-overrides", Takes::Value},
    {"--hf-token", Takes::Value},
    {"--limit-mm-per-prompt", Takes::Value},
    {"--logprobs-mode", Takes::Value},
    {"--lora-modules", Takes::Value},
    {"--max-cpu-loras", Takes::Value},
    {"--max-log-len", Takes::Value},
    {"--max-lora-rank", Takes::Value},
    {"--max-loras", Takes::Value},
    {"--max-num-partial-prefills", Takes::Value},
    {"--max-parallel-loading-workers", Takes::Value},
    {"--max-seq-len-to-capture", Takes::Value},
    {"--middleware", Takes::Value},
    {"--model-loader-extra-config", Takes::Value},
    {"--otlp-traces-endpoint", Takes::Value},
    {"--reasoning-parser", Takes::Value},
    {"--return-tokens-as-token-ids", Takes::Nothing},
    {"--runner", Takes::Value},
    {"--scheduling-policy", Takes::Value},
    {"--speculative-config", Takes::Value},
    {"--stream-interval", Takes::Value},
    {"--swap-space", Takes::Value},
    {"--task", Takes::Value},
    {"--tokenizer-mode", Takes::Value},
    {"--tool-call-parser", Takes::Value},
    {"--tool-parser-plugin", Takes::Value},
    {"--trust-remote-code", Takes::Nothing},
    {"--trust-request-chat-template", Takes::Nothing},
    {"--uvicorn-log-level", Takes::Value},
};

/// Flags that must not be ignored: whoever gives them counts on their effect.
struct RefusedFlag {
  const char* name;
  const char* reason;
};
constexpr RefusedFlag kRefusedFlags[] = {
    {"--ssl-keyfile", "nibble serves plain HTTP; put a proxy with TLS in front of it"},
    {"--ssl-certfile", "nibble serves plain HTTP; put a proxy with TLS in front of it"},
    {"--ssl-ca-certs", "nibble serves plain HTTP; put a proxy with TLS in front of it"},
    {"--uds", "Unix sockets are not supported; use --host and --port"},
    {"--root-path", "path prefixes are not supported; let the proxy remove them"},
    {"--config", "configuration files are not supported; give the flags themselves"},
    {"--tokenizer", "the tokenizer must lie in the model's folder"},
    {"--revision", "give the model's folder, or org/name@revision as the model"},
};

void register_model_flags(CLI::App& command, ServeFlags& flags) {
  engine::EngineOptions& engine = flags.engine;
  command.add_option("model,--model", flags.model, "folder, GGUF file or Hub name")->required()->type_name("MODEL");
  command.add_flag("--gptq-act-order", engine.gptq_act_order, "the GPTQ checkpoint has act-order (read from it)");
  command.add_option("--seed", engine.seed, "of requests that bring none; 0: a fresh one each time")
      ->capture_default_str();
  command.add_option("--chat-template", flags.chat_template, "Jinja file, or the template itself");
  command
      .add_option("--generation-config", flags.generation_config,
                  "auto: the model's generation_config.json gives sampling defaults; vllm: it does not; or a folder")
      ->capture_default_str();
  command.add_option("--override-generation-config", flags.override_generation_config,
                     "JSON object over generation_config.json");
}

void register_engine_flags(CLI::App& command, ServeFlags& flags) {
  engine::EngineOptions& engine = flags.engine;
  add_engine_flags(command, engine);
  flags.without_effect["--enforce-eager"] = command.get_option("--enforce-eager");
  command.add_option("--max-num-seqs", engine.max_num_seqs, "sequences that run at once")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--max-num-batched-tokens", engine.max_num_batched_tokens, "tokens of one step")
      ->transform(human_count())
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--block-size", engine.block_size, "tokens of one KV block")
      ->check(between(1, 1024))
      ->capture_default_str();
  command
      .add_option("--kv-cache-memory-bytes", engine.kv_cache_memory_bytes, "KV cache (2G, 512M); default: see README")
      ->transform(human_count());
  flags.without_effect["--gpu-memory-utilization"] =
      command
          .add_option("--gpu-memory-utilization", engine.gpu_memory_utilization,
                      "share of GPU memory; ignored on the CPU")
          ->check(between(0.01, 1.0))
          ->capture_default_str();
  command.add_option("--num-gpu-blocks-override", engine.num_gpu_blocks_override, "KV blocks, whatever memory says")
      ->check(at_least(0));
  command.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", engine.enable_prefix_caching,
                   "reuse the KV blocks of equal prompt beginnings (default: on)");
  command.add_option("--tensor-parallel-size", flags.tensor_parallel_size,
                     "devices that share a model: 1 here (also -tp)");
  command.add_option("--pipeline-parallel-size", flags.pipeline_parallel_size)->group("");
  command.add_option("--data-parallel-size", flags.data_parallel_size)->group("");
}

void register_api_flags(CLI::App& command, ServeFlags& flags) {
  server::openai::ApiOptions& api = flags.api;
  command.add_option("--served-model-name", api.served_model_names, "names in the API; default: MODEL as given");
  command.add_option("--response-role", api.response_role, "role of answers")->capture_default_str();
  command.add_option("--max-logprobs", api.max_logprobs, "log probabilities a request may ask for; -1: any")
      ->capture_default_str();
  command.add_flag("--enable-prompt-tokens-details", api.enable_prompt_tokens_details, "cached tokens in usage");
  command.add_flag("--enable-force-include-usage", api.enable_force_include_usage, "usage in every stream");
}

void register_http_flags(CLI::App& command, ServeFlags& flags) {
  server::HttpOptions& http = flags.http;
  server::AccessOptions& access = flags.access;
  command.add_option("--host", http.host, "address to listen on")->capture_default_str();
  command.add_option("--port", http.port, "port; 0: any free one")->capture_default_str();
  command.add_option("--api-key", access.api_keys, "key that clients must send; several: any of them")
      ->type_name("KEY");
  command.add_option("--allowed-origins", access.allowed_origins, "CORS: origins")->capture_default_str();
  command.add_option("--allowed-methods", access.allowed_methods, "CORS: methods")->capture_default_str();
  command.add_option("--allowed-headers", access.allowed_headers, "CORS: header fields")->capture_default_str();
  command.add_flag("--allow-credentials", access.allow_credentials, "CORS: cookies and authorization");
  command.add_flag("--enable-request-id-headers", access.enable_request_id_headers, "answer with X-Request-Id");
  command.add_option("--h11-max-incomplete-event-size", http.max_header_bytes, "bytes of a request's header")
      ->transform(human_count())
      ->check(between(1024, 64 * 1024 * 1024))
      ->capture_default_str();
  command.add_option("--h11-max-header-count", http.max_num_headers, "header fields of a request")
      ->capture_default_str();
  command.add_flag("--disable-uvicorn-access-log,--disable-access-log", flags.disable_access_log,
                   "no log line for each request");
  command.add_option("--shutdown-timeout", flags.shutdown_timeout, "seconds that running requests get on SIGTERM")
      ->check(at_least(0))
      ->capture_default_str();
}

/// Listed nowhere, accepted everywhere.
void register_other_vllm_flags(CLI::App& command, ServeFlags& flags) {
  for (const UnusedFlag& flag : kUnusedFlags) {
    CLI::Option* option = flag.takes == Takes::Value ? command.add_option(flag.name) : command.add_flag(flag.name);
    if (flag.takes == Takes::Value) option->expected(1);
    flags.without_effect[std::string(flag.name).substr(0, std::string_view(flag.name).find(','))] = option->group("");
  }
  for (const RefusedFlag& flag : kRefusedFlags) {
    command
        .add_option_function<std::string>(flag.name,
                                          [flag](const std::string&) {
                                            throw Error(ErrorCode::Unsupported,
                                                        fmt::format("{}: {}", flag.name, flag.reason));
                                          })
        ->group("");
  }
}

void require_one(const char* flag, std::int64_t size) {
  if (size == 1) return;
  throw Error(
      ErrorCode::Unsupported,
      fmt::format("{} {}: this nibble runs a model on one device; leave the flag out, or start one server per device "
                  "behind a proxy",
                  flag, size));
}

/// `["a", "b"]` as vLLM takes it, or plain words.
void expand_json_list(std::vector<std::string>& values, const char* flag) {
  if (values.size() != 1 || !values.front().starts_with('[')) return;
  const Json list = parse_json(values.front(), flag);
  values.clear();
  for (const Json& element : list) {
    if (!element.is_string()) throw Error(ErrorCode::InvalidArgument, fmt::format("{}: not a list of strings", flag));
    values.push_back(element.get<std::string>());
  }
}

void take_environment_keys(std::vector<std::string>& api_keys) {
  if (api_keys.empty()) {
    for (const char* name : {"NIBBLE_API_KEY", "VLLM_API_KEY"}) {
      if (const char* key = std::getenv(name)) api_keys.emplace_back(key);
    }
  }
  std::erase(api_keys, "");  // an empty key would let everybody in
}

}  // namespace

void register_serve_flags(CLI::App& command, ServeFlags& flags) {
  register_model_flags(command, flags);
  register_engine_flags(command, flags);
  register_api_flags(command, flags);
  register_http_flags(command, flags);
  register_other_vllm_flags(command, flags);
}

void finish_serve_flags(ServeFlags& flags) {
  require_one("--tensor-parallel-size", flags.tensor_parallel_size);
  require_one("--pipeline-parallel-size", flags.pipeline_parallel_size);
  require_one("--data-parallel-size", flags.data_parallel_size);
  if (flags.engine.quantization == "none" || flags.engine.quantization == "None") flags.engine.quantization.clear();
  take_environment_keys(flags.access.api_keys);
  expand_json_list(flags.access.allowed_origins, "--allowed-origins");
  expand_json_list(flags.access.allowed_methods, "--allowed-methods");
  expand_json_list(flags.access.allowed_headers, "--allowed-headers");
  flags.http.access_log = !flags.disable_access_log;
  flags.api.model_root = flags.model;
  flags.api.version = NIBBLE_VERSION;
  if (flags.api.served_model_names.empty()) flags.api.served_model_names.push_back(flags.model);

  std::vector<std::string> ignored;
  for (const auto& [name, option] : flags.without_effect) {
    const bool is_for_gpus = name == "--gpu-memory-utilization" || name == "--enforce-eager";
    const bool has_effect = is_for_gpus && flags.engine.device == "cuda";
    if (option->count() > 0 && !has_effect) ignored.push_back(name);
  }
  if (!ignored.empty()) {
    log::warning("flags of vLLM that have no effect in nibble: {}", fmt::join(ignored, ", "));
  }
}

}  // namespace nibble::apps
