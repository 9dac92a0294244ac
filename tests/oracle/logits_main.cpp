// usage: nibble_logits MODEL DEVICE TOKENS.json LOGITS.f32
//
// Writes the logits of every position of every sequence in TOKENS.json (an array of arrays of token ids), one sequence
// after another: f32, [num_tokens, vocab_size] each. DEVICE "exact" is the reference backend with f32 activations and
// KV cache, else a name as in --device.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

#include "core/json.h"
#include "engine/engine.h"

namespace {

using namespace nibble;

void write_logits(const std::string& model, const std::string& device, const std::string& tokens_file,
                  const std::string& logits_file) {
  engine::EngineOptions options;
  options.exact = device == "exact";
  options.device = options.exact ? "reference" : device;
  options.kv_cache_memory_bytes = 256'000'000;
  const auto engine = engine::Engine::load(model, options);
  std::ofstream file(logits_file, std::ios::binary);
  file.exceptions(std::ios::failbit | std::ios::badbit);
  for (const Json& sequence : read_json_file(tokens_file)) {
    engine->score(sequence.get<std::vector<std::int32_t>>(), [&](const engine::LogitTile& tile) {
      for (std::int64_t row = 0; row < tile.logits.rows; ++row) {
        file.write(reinterpret_cast<const char*>(tile.logits.row(row)),
                   tile.logits.cols * static_cast<std::streamsize>(sizeof(float)));
      }
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s MODEL DEVICE TOKENS.json LOGITS.f32\n", argv[0]);
    return 2;
  }
  try {
    write_logits(argv[1], argv[2], argv[3], argv[4]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
