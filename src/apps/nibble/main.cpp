#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/nibble/output.h"
#include "apps/nibble/subcommands.h"
#include "apps/nibble/typo.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"

namespace nibble::apps {
namespace {

struct Subcommand {
  const char* name;
  const char* description;
  std::function<int()> (*add)(CLI::App& command);
};

constexpr Subcommand kSubcommands[] = {
    {"quantize", "make a model small: AWQ, GPTQ, FP8, SqueezeLLM or RTN", add_quantize},
    {"eval", "say what that cost: perplexity, KL, accuracy, against a baseline", add_eval},
    {"serve", "serve a model behind an OpenAI-compatible API", add_serve},
    {"generate", "continue a prompt, or answer it (--chat)", add_generate},
    {"import", "write a GGUF file as a Hugging Face checkpoint", add_import},
    {"convert", "write a quantized checkpoint in another format, number for number", add_convert},
    {"inspect", "what a model file is: method, bits, groups, sizes, tensors", add_inspect},
    {"verify", "find what is wrong with a checkpoint, silent faults too", add_verify},
    {"bench", "measure prefill and decode speed of a model", add_bench},
    {"bench serve", "measure a running server: throughput, time to first token, between tokens", add_bench_serve},
    {"reproduce", "make a quantized checkpoint again from its report, and compare", add_reproduce},
};

constexpr int kDone = 0;
constexpr int kError = 1;
constexpr int kUsage = 2;

/// One line, whatever an argument or a file name holds.
int fail(int exit_code, std::string_view message) {
  std::string line(message);
  std::ranges::replace_if(line, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  print_error(fmt::format("nibble: error: {}\n", line));
  return exit_code;
}

std::vector<std::string> subcommand_names() {
  std::vector<std::string> names;
  for (const Subcommand& subcommand : kSubcommands) names.emplace_back(subcommand.name);
  return names;
}

bool is_subcommand(std::string_view name) {
  return std::ranges::any_of(kSubcommands, [&](const Subcommand& subcommand) { return subcommand.name == name; });
}

std::vector<std::string> flag_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& candidates) {
  const auto suggestion = closest(word, candidates);
  return suggestion ? fmt::format("; did you mean {}?", *suggestion) : std::string();
}

/// vLLM's short flags of two letters, which CLI11 would read as two flags.
std::string with_long_name(const std::string& argument, const std::vector<std::string>& flags) {
  constexpr std::pair<std::string_view, std::string_view> kShortFlags[] = {
      {"-tp", "--tensor-parallel-size"}, {"-pp", "--pipeline-parallel-size"}, {"-dp", "--data-parallel-size"}};
  for (const auto& [short_name, long_name] : kShortFlags) {
    const bool is_short = argument.substr(0, argument.find('=')) == short_name;
    if (is_short && std::ranges::find(flags, long_name) != flags.end()) {
      return std::string(long_name) + argument.substr(short_name.size());
    }
  }
  return argument;
}

/// vLLM takes --max_model_len for --max-model-len: so does nibble, unless a flag is registered with underscores.
std::string with_dashes(const std::string& argument, const std::vector<std::string>& flags) {
  if (!argument.starts_with("--")) return argument;
  std::string flag = argument.substr(0, argument.find('='));
  const std::string value = argument.substr(flag.size());
  if (std::ranges::find(flags, flag) != flags.end()) return argument;
  std::ranges::replace(flag, '_', '-');
  return std::ranges::find(flags, flag) != flags.end() ? flag + value : argument;
}

std::vector<std::string> normalized(std::vector<std::string> arguments, const CLI::App& command) {
  const std::vector<std::string> flags = flag_names(command);
  for (std::string& argument : arguments) {
    if (argument == "--") break;
    argument = with_long_name(with_dashes(argument, flags), flags);
  }
  return arguments;
}

int usage_error(const CLI::App& command, const std::string& path, std::string message) {
  for (const std::string& extra : command.remaining()) {
    if (!extra.starts_with("--")) continue;
    const std::string flag = extra.substr(0, extra.find('='));
    message = fmt::format("unknown flag {}{}", flag, did_you_mean(flag, flag_names(command)));
    break;
  }
  return fail(kUsage, fmt::format("{} (see {} --help)", message, path));
}

int run_subcommand(const Subcommand& subcommand, std::vector<std::string> arguments) {
  const std::string path = fmt::format("nibble {}", subcommand.name);
  CLI::App command(subcommand.description, path);
  command.get_formatter()->column_width(40);
  const std::function<int()> run = subcommand.add(command);
  arguments = normalized(std::move(arguments), command);
  std::ranges::reverse(arguments);  // CLI11 takes them last first
  try {
    command.parse(arguments);
    return run();  // may find a contradiction of flags, also a ParseError
  } catch (const CLI::CallForHelp&) {
    print(command.help());
    return kDone;
  } catch (const CLI::ParseError& error) {
    return usage_error(command, path, error.what());
  }
}

std::string usage() {
  std::string text =
      "nibble: make large language models small, measure what it costs, serve them\n\n"
      "usage: nibble SUBCOMMAND [flags]     (nibble SUBCOMMAND --help lists them)\n\n";
  for (const Subcommand& subcommand : kSubcommands) {
    text += fmt::format("  {:<11} {}\n", subcommand.name, subcommand.description);
  }
  return text +
         "\n  --version  print the version\n\nExit codes: 0 done, 1 error, 2 usage, 3 rejected by a threshold.\n";
}

int run(std::vector<std::string> arguments) {
  if (arguments.empty()) {
    print_error(usage());
    return kUsage;
  }
  std::string name = arguments.front();
  arguments.erase(arguments.begin());
  if (!arguments.empty() && is_subcommand(name + " " + arguments.front())) {
    name += " " + arguments.front();
    arguments.erase(arguments.begin());
  }
  if (name == "--help" || name == "-h" || name == "help") {
    print(usage());
    return kDone;
  }
  if (name == "--version" || name == "version") {
    print("nibble " NIBBLE_VERSION "\n");
    return kDone;
  }
  for (const Subcommand& subcommand : kSubcommands) {
    if (name == subcommand.name) return run_subcommand(subcommand, std::move(arguments));
  }
  return fail(kUsage, fmt::format("unknown {} {}{} (see nibble --help)", name.starts_with("-") ? "flag" : "subcommand",
                                  name, did_you_mean(name, subcommand_names())));
}

/// NIBBLE_LOG_LEVEL: debug, info (the default), warning or error. Errors: InvalidArgument for anything else.
void set_log_level() {
  const char* wanted = std::getenv("NIBBLE_LOG_LEVEL");
  if (wanted == nullptr || *wanted == '\0') return;
  constexpr std::pair<std::string_view, log::Level> kLevels[] = {{"debug", log::Level::Debug},
                                                                 {"info", log::Level::Info},
                                                                 {"warning", log::Level::Warning},
                                                                 {"error", log::Level::Error}};
  const auto found =
      std::ranges::find(kLevels, std::string_view(wanted), [](const auto& level) { return level.first; });
  if (found == std::end(kLevels)) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("NIBBLE_LOG_LEVEL={}: choose debug, info, warning or error", wanted));
  }
  log::set_level(found->second);
}

/// Everything that can go wrong, as one line and an exit code.
int run_and_report(std::vector<std::string> arguments) {
  try {
    set_log_level();
    const int exit_code = run(std::move(arguments));
    flush_output();
    return exit_code;
  } catch (const ClosedOutput&) {
    return kDone;
  } catch (const Error& error) {
    return fail(kError, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kError, "out of memory");
  } catch (const std::exception& error) {
    return fail(kError, fmt::format("internal error: {}", error.what()));
  }
}

}  // namespace
}  // namespace nibble::apps

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed socket or pipe is an error code where it is written, not a death
  nibble::apps::claim_standard_descriptors();
  nibble::report_mapping_faults();
  return nibble::apps::run_and_report({argv + 1, argv + argc});
}
