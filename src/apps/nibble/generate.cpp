#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "apps/nibble/flags.h"
#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "engine/engine.h"
#include "hub/hub.h"
#include "tokenizer/chat_template.h"

namespace nibble::apps {
namespace {

struct GenerateOptions {
  std::string model;
  std::string prompt;
  std::string system;
  std::string chat_template_file;
  bool chat = false;
  std::int64_t max_tokens = 256;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<std::int32_t> top_k;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
  engine::EngineOptions engine;
};

/// Hands the engine thread's outputs to the thread that prints them.
class OutputQueue {
 public:
  void push(engine::RequestOutput output) {
    {
      const std::lock_guard lock(mutex_);
      outputs_.push_back(std::move(output));
    }
    arrived_.notify_one();
  }

  engine::RequestOutput pop() {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [&] { return !outputs_.empty(); });
    engine::RequestOutput output = std::move(outputs_.front());
    outputs_.pop_front();
    return output;
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<engine::RequestOutput> outputs_;
};

std::string render_chat(const engine::Engine& engine, const GenerateOptions& options) {
  const std::string override_source =
      options.chat_template_file.empty() ? "" : read_text_file(options.chat_template_file);
  const auto choice = tokenizer::choose_chat_template(
      override_source, engine.chat_template_jinja(), engine.tokenizer_config(), engine.config().model_type,
      options.model, engine.tokenizer().token_id("<|im_start|>").has_value());
  if (choice.is_fallback) log::warning("the checkpoint has no chat template: using {}", choice.origin);

  Json messages = Json::array();
  if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
  messages.push_back({{"role", "user"}, {"content", options.prompt}});
  tokenizer::ChatTemplate::Options render_options;
  render_options.bos_token = engine.tokenizer().bos_token();
  render_options.eos_token = engine.tokenizer().eos_token();
  return choice.chat_template->render(messages, render_options);
}

/// Flag, else the model's generation_config, else greedy.
engine::SamplingParams sampling_params(const GenerateOptions& options, const Json& generation_config) {
  const auto configured = [&](const char* key, double fallback) {
    try {
      return generation_config.is_object() ? get_or<double>(generation_config, key, fallback) : fallback;
    } catch (const Error& error) {
      throw error.in("generation_config.json");
    }
  };
  engine::SamplingParams params;
  params.temperature = options.temperature.value_or(static_cast<float>(configured("temperature", 0)));
  params.top_p = options.top_p.value_or(static_cast<float>(configured("top_p", 1)));
  params.top_k = options.top_k.value_or(static_cast<std::int32_t>(configured("top_k", 0)));
  params.seed = options.seed;
  params.max_tokens = options.max_tokens;
  params.stop = options.stop;
  return params;
}

int generate(const GenerateOptions& options) {
  using Clock = std::chrono::steady_clock;
  OutputQueue outputs;  // outlives the engine, whose thread fills it
  const auto engine = engine::Engine::load(hub::resolve_model(options.model), options.engine);
  const std::string text = options.chat ? render_chat(*engine, options) : options.prompt;

  engine::Request request;
  request.id = "generate";
  request.prompt = engine->tokenizer().encode(text, /*add_special_tokens=*/!options.chat);
  request.params = sampling_params(options, engine->generation_config());
  request.on_output = [&](engine::RequestOutput output) { outputs.push(std::move(output)); };
  const auto start = Clock::now();
  engine->submit(std::move(request));

  std::optional<Clock::time_point> first_token;
  for (;;) {
    const engine::RequestOutput output = outputs.pop();
    if (!first_token) first_token = Clock::now();
    print(output.text);
    if (output.finish_reason == engine::FinishReason::None) continue;
    if (output.finish_reason == engine::FinishReason::Error) throw Error(ErrorCode::Internal, output.error);
    print("\n");
    const std::chrono::duration<double> prefill = *first_token - start;
    const std::chrono::duration<double> decode = Clock::now() - *first_token;
    const auto num_decoded = static_cast<double>(output.num_output_tokens - 1);
    std::string summary = fmt::format("{} prompt tokens in {:.2f} s, {} tokens generated", output.num_prompt_tokens,
                                      prefill.count(), output.num_output_tokens);
    if (num_decoded > 0) summary += fmt::format(", {:.1f} tokens/s", num_decoded / decode.count());
    print_error(summary + "\n");
    return 0;
  }
}

}  // namespace

std::function<int()> add_generate(CLI::App& command) {
  auto options = std::make_shared<GenerateOptions>();
  command.add_option("model", options->model, "folder, GGUF file or Hub name")->required()->type_name("MODEL");
  command.add_option("--prompt,-p", options->prompt, "text to continue or to answer")->required()->type_name("TEXT");
  CLI::Option* chat = command.add_flag("--chat", options->chat, "render the prompt with the model's chat template");
  command.add_option("--system", options->system, "system message (with --chat)")->type_name("TEXT")->needs(chat);
  command.add_option("--chat-template", options->chat_template_file, "Jinja file instead of the model's own")
      ->type_name("FILE")
      ->needs(chat);
  command.add_option("--max-tokens,-n", options->max_tokens, "tokens to generate at most")
      ->check(at_least(1))
      ->capture_default_str();
  command.add_option("--temperature", options->temperature, "0 is greedy; default: generation_config.json, else 0")
      ->check(at_least(0));
  command.add_option("--top-p", options->top_p, "nucleus sampling")->check(between(0.0, 1.0));
  command.add_option("--top-k", options->top_k, "sample among the k likeliest; 0 is off")->check(at_least(0));
  command.add_option("--seed", options->seed, "same seed, same text");
  command.add_option("--stop", options->stop, "string that ends the text; may be repeated")->allow_extra_args(false);
  add_engine_flags(command, options->engine);
  return [options] { return generate(*options); };
}

}  // namespace nibble::apps
