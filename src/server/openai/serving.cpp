#include "server/openai/serving.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "server/openai/errors.h"
#include "server/openai/fields.h"

namespace nibble::server::openai {
namespace {

/// FNV-1a: tells deployments apart, nothing more.
std::uint32_t hash32(std::string_view text) {
  std::uint32_t hash = 2166136261u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return hash;
}

/// No token stands for more bytes of text than the longest one, so a text of more bytes than the context times that
/// need not be tokenized to be refused. A special token's text counts as well.
std::int64_t max_prompt_bytes(const engine::Engine& engine) {
  std::size_t longest = 4;
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  for (std::int64_t id = 0; id < tokenizer.vocab_size(); ++id) {
    longest = std::max(longest, tokenizer.id_to_token(static_cast<std::int32_t>(id)).size());
  }
  return engine.max_model_len() * static_cast<std::int64_t>(longest);
}

template <class T>
void take(const Json& config, const char* key, T& value, std::vector<std::string>& overridden) {
  const auto found = get_optional<T>(config, key);
  if (!found || *found == value) return;
  value = *found;
  overridden.push_back(fmt::format("{}={}", key, value));
}

}  // namespace

SamplingDefaults sampling_defaults(const Json& generation_config) {
  SamplingDefaults defaults;
  if (!generation_config.is_object()) return defaults;
  try {
    take(generation_config, "temperature", defaults.temperature, defaults.overridden);
    take(generation_config, "top_p", defaults.top_p, defaults.overridden);
    take(generation_config, "top_k", defaults.top_k, defaults.overridden);
    take(generation_config, "min_p", defaults.min_p, defaults.overridden);
    take(generation_config, "repetition_penalty", defaults.repetition_penalty, defaults.overridden);
    defaults.max_new_tokens = get_optional<std::int64_t>(generation_config, "max_new_tokens");
    if (defaults.max_new_tokens) {
      defaults.overridden.push_back(fmt::format("max_new_tokens={}", *defaults.max_new_tokens));
    }
  } catch (const Error& error) {
    throw error.in("generation_config.json");
  }
  return defaults;
}

Serving::Serving(engine::Engine& served_engine, std::unique_ptr<tokenizer::ChatTemplate> template_of_model,
                 ApiOptions api_options)
    : engine(served_engine),
      chat_template(std::move(template_of_model)),
      options(std::move(api_options)),
      defaults(sampling_defaults(options.generation_config)),
      system_fingerprint(
          fmt::format("nibble-{}-{:08x}", options.version, hash32(options.model_root + '\n' + engine.description()))),
      created(unix_seconds()),
      max_prompt_bytes(openai::max_prompt_bytes(engine)),
      metrics(model_name()) {}

void check_model(const Json& body, const Serving& serving) {
  const std::string model = field_or<std::string>(body, "model", "");
  if (!model.empty()) expect_served(model, serving);
}

void expect_served(const std::string& model, const Serving& serving) {
  if (std::ranges::find(serving.options.served_model_names, model) != serving.options.served_model_names.end()) return;
  throw not_found(fmt::format("The model `{}` does not exist.", excerpt(model)), "model");
}

std::string random_hex(int num_digits) {
  static constexpr char kDigits[] = "0123456789abcdef";
  thread_local std::mt19937_64 generator{std::random_device{}()};
  std::string digits;
  for (int i = 0; i < num_digits; ++i) digits += kDigits[generator() % 16];
  return digits;
}

std::int64_t unix_seconds() {
  using namespace std::chrono;
  return duration_cast<seconds>(system_clock::now().time_since_epoch()).count();
}

}  // namespace nibble::server::openai
