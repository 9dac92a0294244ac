// One forward pass of a whole dummy model, logits of the last tokens included: decode and prefill steps.
//   build/release/bin/bench_decoder_step --benchmark_filter=135m
#include <cstdlib>
#include <filesystem>
#include <map>

#include "core/file.h"
#include "core/json.h"
#include "machine.h"
#include "models/loader.h"
#include "step_batch.h"

namespace nibble::bench {
namespace {

struct Model {
  const char* name;
  std::int64_t hidden_size;
  std::int64_t intermediate_size;
  std::int64_t num_layers;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;
  std::int64_t vocab_size;
  bool is_tied;
};

constexpr Model kModels[] = {{"135m", 576, 1536, 30, 9, 3, 49152, true}, {"1b", 2048, 5632, 22, 32, 4, 32000, false}};

Json config_of(const Model& model, std::int64_t bits) {
  Json config = {{"architectures", {"LlamaForCausalLM"}},
                 {"model_type", "llama"},
                 {"hidden_size", model.hidden_size},
                 {"intermediate_size", model.intermediate_size},
                 {"num_hidden_layers", model.num_layers},
                 {"num_attention_heads", model.num_heads},
                 {"num_key_value_heads", model.num_kv_heads},
                 {"vocab_size", model.vocab_size},
                 {"max_position_embeddings", 4096},
                 {"rms_norm_eps", 1e-5},
                 {"hidden_act", "silu"},
                 {"tie_word_embeddings", model.is_tied},
                 {"torch_dtype", "float16"}};
  if (bits < 16) {
    config["quantization_config"] = {
        {"quant_method", "gptq"}, {"bits", bits}, {"group_size", 64}, {"sym", true}, {"desc_act", false}};
  }
  return config;
}

/// A model on the CPU backend; loaded once for all its benchmarks.
struct Loaded {
  std::unique_ptr<backend::Backend> backend;
  std::unique_ptr<formats::Checkpoint> checkpoint;
  std::unique_ptr<models::Decoder> decoder;
};

Loaded& load(const Model& model, std::int64_t bits) {
  static std::map<std::string, Loaded> models;
  const std::string name = std::string(model.name) + "-" + std::to_string(bits);
  const auto [found, is_new] = models.try_emplace(name);
  Loaded& loaded = found->second;
  if (!is_new) return loaded;
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("nibble-bench-" + std::to_string(getpid()) + "-" + name);
  std::filesystem::create_directories(folder);
  write_text_file(folder / "config.json", config_of(model, bits).dump());
  loaded.backend = backend::make_backend("cpu", {.num_threads = num_threads()});
  loaded.checkpoint = models::make_dummy_checkpoint(folder, 0);
  loaded.decoder = models::load_decoder(*loaded.checkpoint, *loaded.backend);
  std::filesystem::remove_all(folder);
  return loaded;
}

void step(benchmark::State& state, Model model) {
  const std::int64_t num_sequences = state.range(1);
  const std::int64_t num_new = state.range(2);
  Loaded& loaded = load(model, state.range(0));
  const StepBatch storage(num_sequences, num_new, state.range(3));
  const backend::ForwardBatch batch = storage.batch();
  loaded.decoder->reserve(batch.num_tokens(), num_sequences);
  const auto cache =
      loaded.backend->make_kv_cache(loaded.decoder->kv_specs(DType::F16), storage.num_blocks(), StepBatch::kBlockSize);
  for (auto _ : state) {
    benchmark::DoNotOptimize(loaded.decoder->step(batch, *cache, num_sequences));
  }
  const double weights =
      static_cast<double>(model.num_layers) *
      (static_cast<double>(model.hidden_size * model.hidden_size) *
           (2 + 2.0 * static_cast<double>(model.num_kv_heads) / static_cast<double>(model.num_heads)) +
       3.0 * static_cast<double>(model.hidden_size * model.intermediate_size));
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(batch.num_tokens()), benchmark::Counter::kIsIterationInvariantRate);
  report(state, loaded.backend->pool(),
         2 * (weights * static_cast<double>(batch.num_tokens()) +
              static_cast<double>(num_sequences * model.hidden_size) * static_cast<double>(model.vocab_size)),
         static_cast<double>(loaded.decoder->weight_bytes()));
}

void register_all() {
  for (const Model& model : kModels) {
    auto* benchmark = benchmark::RegisterBenchmark(model.name, step, model)
                          ->ArgNames({"bits", "sequences", "new", "context"})
                          ->Unit(benchmark::kMillisecond)
                          ->UseRealTime();
    for (const std::int64_t bits : {4, 16}) {
      benchmark->Args({bits, 1, 1, 128})->Args({bits, 8, 1, 128})->Args({bits, 32, 1, 128})->Args({bits, 1, 512, 0});
    }
  }
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  nibble::bench::register_all();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
