#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "apps/nibble/serve_flags.h"
#include "apps/nibble/subcommands.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "engine/engine.h"
#include "hub/hub.h"
#include "server/routes.h"
#include "tokenizer/chat_template.h"

namespace nibble::apps {
namespace {

using Clock = std::chrono::steady_clock;

/// What finished answers get to reach their clients once the engine is quiet.
constexpr std::chrono::milliseconds kFlushTime{1'000};

/// SIGTERM, SIGINT and SIGHUP, taken by a thread of its own; every thread that starts later leaves them to it. The
/// first one while serving asks for a drain; one while loading, and any second one, ends the process at once.
class SignalWatcher {
 public:
  SignalWatcher() {
    sigemptyset(&signals_);
    for (const int signal : {SIGTERM, SIGINT, kStopWatching}) sigaddset(&signals_, signal);
    struct sigaction hang_up{};
    sigaction(SIGHUP, nullptr, &hang_up);
    if (hang_up.sa_handler != SIG_IGN) sigaddset(&signals_, SIGHUP);  // nohup
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    thread_ = std::jthread([this] { watch(); });
  }
  ~SignalWatcher() { pthread_kill(thread_.native_handle(), kStopWatching); }
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

  void wait_for_drain() {
    is_serving_ = true;
    drain_.get_future().wait();
  }
  /// As if a signal had asked; any thread.
  void request_drain() {
    if (!is_draining_.exchange(true)) drain_.set_value();
  }

 private:
  static constexpr int kStopWatching = SIGUSR1;

  void watch() {
    int num_received = 0;
    for (;;) {
      int signal = 0;
      sigwait(&signals_, &signal);
      if (signal == kStopWatching) return;
      if (!is_serving_) std::_Exit(EXIT_SUCCESS);
      if (++num_received > 1) {
        log::warning("second signal: ending at once");
        std::_Exit(EXIT_FAILURE);
      }
      request_drain();
    }
  }

  sigset_t signals_;
  std::atomic<bool> is_serving_{false};
  std::atomic<bool> is_draining_{false};
  std::promise<void> drain_;
  std::jthread thread_;
};

/// A connection is a descriptor: take as many as the system lets us have.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

Json choose_generation_config(const ServeFlags& flags, const engine::Engine& engine) {
  Json config;
  if (flags.generation_config == "auto") {
    config = engine.generation_config();
  } else if (flags.generation_config != "vllm") {
    config = read_json_file(std::filesystem::path(flags.generation_config) / "generation_config.json");
  }
  if (flags.override_generation_config.empty()) return config;
  const Json overrides = parse_json(flags.override_generation_config, "--override-generation-config");
  if (!overrides.is_object()) {
    throw Error(ErrorCode::InvalidArgument, "--override-generation-config: expected a JSON object");
  }
  if (!config.is_object()) config = Json::object();
  config.update(overrides);
  return config;
}

/// --chat-template takes a file, or the template itself where the text cannot be a file's name.
std::string read_chat_template(const std::string& value) {
  const bool is_template = value.find_first_of("{}\n") != std::string::npos;
  return value.empty() || is_template ? value : read_text_file(value);
}

std::unique_ptr<tokenizer::ChatTemplate> load_chat_template(const ServeFlags& flags, const engine::Engine& engine) {
  auto choice = tokenizer::choose_chat_template(read_chat_template(flags.chat_template), engine.chat_template_jinja(),
                                                engine.tokenizer_config(), engine.config().model_type, flags.model,
                                                engine.tokenizer().token_id("<|im_start|>").has_value());
  if (choice.is_fallback) {
    log::warning("the model brings no chat template; chat uses {} (--chat-template FILE overrides it)", choice.origin);
  }
  return std::move(choice.chat_template);
}

std::string url(const ServeFlags& flags, std::uint16_t port) {
  const bool is_ipv6 = flags.http.host.find(':') != std::string::npos && !flags.http.host.starts_with('[');
  return is_ipv6 ? fmt::format("http://[{}]:{}", flags.http.host, port)
                 : fmt::format("http://{}:{}", flags.http.host, port);
}

int serve(ServeFlags& flags) {
  const auto start = Clock::now();
  finish_serve_flags(flags);
  raise_descriptor_limit();
  SignalWatcher signals;
  const auto model = hub::resolve_model(flags.model);
  std::unique_ptr<engine::Engine> engine;  // outlives the server
  server::ApiServer server(flags.http, flags.access);
  engine = engine::Engine::load(model, flags.engine);
  flags.api.generation_config = choose_generation_config(flags, *engine);
  engine->set_on_failure([&signals] { signals.request_drain(); });
  server.start(*engine, load_chat_template(flags, *engine), flags.api);

  const auto& overridden = server.serving().defaults.overridden;
  if (!overridden.empty()) {
    log::warning("sampling defaults from the model's generation_config.json: {} (--generation-config vllm ignores it)",
                 fmt::join(overridden, ", "));
  }
  const std::chrono::duration<double> elapsed = Clock::now() - start;
  log::info("{}, context {} tokens", engine->description(), engine->max_model_len());
  log::info("serving {} at {} after {:.2f} s", fmt::join(flags.api.served_model_names, ", "), url(flags, server.port()),
            elapsed.count());

  signals.wait_for_drain();
  if (const auto failure = engine->failure()) {
    server.begin_drain();
    server.shut_down(kFlushTime);
    throw Error(ErrorCode::Unavailable, *failure);
  }
  const engine::EngineStats stats = engine->stats();
  log::info("shutting down: {} running and {} waiting sequences get {} s", stats.num_running, stats.num_waiting,
            flags.shutdown_timeout);
  server.begin_drain();
  engine->drain(flags.shutdown_timeout);
  server.shut_down(kFlushTime);
  log::info("shut down");
  return 0;
}

}  // namespace

std::function<int()> add_serve(CLI::App& command) {
  auto flags = std::make_shared<ServeFlags>();  // shared by the parsed command and its options (see subcommands.h)
  register_serve_flags(command, *flags);
  return [flags] { return serve(*flags); };
}

}  // namespace nibble::apps
