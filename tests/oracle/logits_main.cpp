// usage: nibble_logits MODEL DEVICE NUM_GREEDY PROMPTS.json SEQUENCES.json LOGITS.f32 [NAME=VALUE...]
//
// Continues each prompt of PROMPTS.json (an array; a prompt is an array of token ids or a text) greedily by up to
// NUM_GREEDY tokens, writes prompts with their continuations to SEQUENCES.json as token ids, and the logits of every
// position of those, one sequence after another, to LOGITS.f32: [num_tokens, vocab_size] each. DEVICE "exact" is the
// reference backend with f32 activations and KV cache, else a name as in --device. NAME is quantization or activations,
// flags of `nibble serve`.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "engine/engine.h"

namespace {

using namespace nibble;
using Tokens = std::vector<std::int32_t>;

void set_flag(engine::EngineOptions& options, const std::string& flag) {
  const std::size_t equals = flag.find('=');
  const std::string name = flag.substr(0, equals);
  if (equals == std::string::npos || (name != "quantization" && name != "activations")) {
    throw Error(ErrorCode::InvalidArgument, flag + ": quantization=… or activations=…");
  }
  (name == "quantization" ? options.quantization : options.activations) = flag.substr(equals + 1);
}

std::unique_ptr<engine::Engine> load(const std::string& model, const std::string& device,
                                     std::span<char* const> flags) {
  engine::EngineOptions options;
  for (const char* flag : flags) set_flag(options, flag);
  options.exact = device == "exact";
  options.device = options.exact ? "reference" : device;
  options.kv_cache_memory_bytes = 256'000'000;
  return engine::Engine::load(model, options);
}

/// The tokens that follow `prompt` greedily; EOS, where it comes, is the last one.
Tokens continue_greedily(engine::Engine& engine, const Tokens& prompt, std::int64_t max_tokens) {
  Tokens continuation;
  if (max_tokens == 0) return continuation;
  std::promise<void> done;
  engine::Request request;
  request.id = "greedy";
  request.prompt = prompt;
  request.params.temperature = 0;
  request.params.max_tokens = max_tokens;
  request.on_output = [&](const engine::RequestOutput& output) {
    continuation.insert(continuation.end(), output.tokens.begin(), output.tokens.end());
    if (output.finish_reason != engine::FinishReason::None) done.set_value();
  };
  engine.submit(std::move(request));
  done.get_future().wait();
  return continuation;
}

void write_logits(engine::Engine& engine, const Tokens& sequence, std::ofstream& file) {
  engine.score(sequence, [&](const engine::LogitTile& tile) {
    for (std::int64_t row = 0; row < tile.logits.rows; ++row) {
      file.write(reinterpret_cast<const char*>(tile.logits.row(row)),
                 tile.logits.cols * static_cast<std::streamsize>(sizeof(float)));
    }
  });
}

void run(std::span<char* const> arguments) {
  const auto engine = load(arguments[0], arguments[1], arguments.subspan(6));
  const std::int64_t num_greedy = std::stoll(arguments[2]);
  std::ofstream file(arguments[5], std::ios::binary);
  file.exceptions(std::ios::failbit | std::ios::badbit);
  Json sequences = Json::array();
  for (const Json& prompt : read_json_file(arguments[3])) {
    Tokens sequence = prompt.is_string() ? engine->tokenizer().encode(prompt.get<std::string>()) : prompt.get<Tokens>();
    const Tokens continuation = continue_greedily(*engine, sequence, num_greedy);
    sequence.insert(sequence.end(), continuation.begin(), continuation.end());
    write_logits(*engine, sequence, file);
    sequences.push_back(sequence);
  }
  write_json_file(arguments[4], sequences);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "usage: %s MODEL DEVICE NUM_GREEDY PROMPTS.json SEQUENCES.json LOGITS.f32 [NAME=VALUE...]\n",
                 argv[0]);
    return 2;
  }
  try {
    run({argv + 1, static_cast<std::size_t>(argc - 1)});
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
