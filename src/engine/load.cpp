#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "core/log.h"
#include "core/progress.h"
#include "engine/kv_budget.h"
#include "engine/loaded_model.h"
#include "formats/compressed_tensors_scheme.h"
#include "models/loader.h"

namespace nibble::engine {
namespace {

std::unique_ptr<formats::Checkpoint> open_checkpoint(const std::filesystem::path& model, const EngineOptions& options) {
  constexpr std::array<std::string_view, 4> kFormats{"auto", "safetensors", "gguf", "dummy"};
  if (std::ranges::find(kFormats, options.load_format) == kFormats.end()) {
    throw Error(ErrorCode::InvalidArgument,
                "--load-format " + options.load_format + ": choose auto, safetensors, gguf or dummy");
  }
  if (options.load_format == "dummy") return models::make_dummy_checkpoint(model, options.seed);
  const bool is_folder = std::filesystem::is_directory(model);
  if ((options.load_format == "gguf" && is_folder) || (options.load_format == "safetensors" && !is_folder)) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--load-format {}: {} is a {}; leave the flag out", options.load_format, model.string(),
                            is_folder ? "folder" : "file"));
  }
  return formats::Checkpoint::open(model);
}

/// Spellings that vLLM accepts for one family.
std::string quantization_family(const std::string& method) {
  if (method == "awq_marlin") return "awq";
  if (method == "gptq_marlin" || method == "auto_gptq") return "gptq";
  return method;
}

bool has_fp8_weights(const formats::Checkpoint& checkpoint) {
  const auto& found = checkpoint.quantization();
  return found && (found->method == "fp8" ||
                   (found->method == "compressed-tensors" && found->checkpoint_format == "float-quantized"));
}

/// FP8 weights that vLLM multiplies with float activations, on every GPU (CompressedTensorsW8A16Fp8).
bool has_weight_only_fp8(const formats::Checkpoint& checkpoint) {
  const auto& found = checkpoint.quantization();
  if (!has_fp8_weights(checkpoint) || found->method != "compressed-tensors") return false;
  const formats::CompressedConfig config = formats::parse_compressed_config(found->raw);
  return std::ranges::any_of(config.schemes, [](const formats::CompressedScheme& scheme) {
    return scheme.layout == formats::CompressedLayout::FloatQuantized && !scheme.quantizes_activations;
  });
}

void check_quantization(const formats::Checkpoint& checkpoint, const EngineOptions& options) {
  const std::string wanted = quantization_family(options.quantization);
  const auto& found = checkpoint.quantization();
  if (options.gptq_act_order && !(found && found->method == "gptq" && found->desc_act)) {
    log::warning("--gptq-act-order: {} has no act-order (desc_act); the flag has no effect",
                 checkpoint.path().string());
  }
  if (wanted.empty()) return;
  if (!found) {
    if (wanted == "fp8") return;
    constexpr std::array<std::string_view, 4> kPrepared{"awq", "gptq", "compressed-tensors", "squeezellm"};
    if (std::ranges::find(kPrepared, wanted) == kPrepared.end()) {
      throw Error(ErrorCode::Unsupported,
                  fmt::format("--quantization {}: not supported; awq, gptq, squeezellm, compressed-tensors and fp8 are",
                              wanted));
    }
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--quantization {0}: {1} is not quantized; run nibble quantize --method {0} first", wanted,
                            checkpoint.path().string()));
  }
  if (wanted == "fp8" && found->method == "gguf") {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--quantization fp8: {} is a GGUF file, which is served as it is; make a folder of it with "
                            "nibble import first",
                            checkpoint.path().string()));
  }
  if (wanted == "fp8" && has_fp8_weights(checkpoint)) return;
  if (found->method != wanted) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--quantization {}: {} is quantized with {}; leave the flag out or give {}",
                            options.quantization, checkpoint.path().string(), found->method, found->method));
  }
}

bool quantizes_to_fp8(const formats::Checkpoint& checkpoint, const EngineOptions& options) {
  return options.quantization == "fp8" && !checkpoint.quantization();
}

/// Errors: InvalidArgument for another word.
backend::Fp8Activations fp8_activations(const formats::Checkpoint& checkpoint, const EngineOptions& options) {
  if (options.activations == "float") return backend::Fp8Activations::Float;
  if (options.activations == "auto") {
    return has_weight_only_fp8(checkpoint) ? backend::Fp8Activations::Float : backend::Fp8Activations::Auto;
  }
  if (options.activations != "fp8") {
    throw Error(ErrorCode::InvalidArgument, "--activations " + options.activations + ": choose auto, float or fp8");
  }
  if (!quantizes_to_fp8(checkpoint, options) && !has_fp8_weights(checkpoint)) {
    log::warning("--activations fp8: {} has no FP8 weights; the flag has no effect", checkpoint.path().string());
  }
  if (has_weight_only_fp8(checkpoint)) {
    throw Error(ErrorCode::Unsupported,
                fmt::format("--activations fp8: {} quantizes weights only (no input_activations in its config_groups), "
                            "so GPUs do not round its activations; leave the flag out",
                            checkpoint.path().string()));
  }
  return backend::Fp8Activations::Rounded;
}

/// The checkpoint was made for an FP8 KV cache.
bool asks_for_fp8_cache(const formats::Checkpoint& checkpoint) {
  const auto& found = checkpoint.quantization();
  if (!found || !found->raw.is_object()) return false;
  const auto scheme = found->raw.find("kv_cache_scheme");
  return scheme != found->raw.end() && scheme->is_object() && get_or<std::int64_t>(*scheme, "num_bits", 0) == 8 &&
         get_or<std::string>(*scheme, "type", "") == "float";
}

DType float_cache_dtype(const EngineOptions& options) {
  const std::string& dtype = options.dtype;
  if (dtype == "float32" || dtype == "float" || options.exact) return DType::F32;
  if (dtype == "bfloat16") return DType::BF16;
  if (dtype == "auto" || dtype == "float16" || dtype == "half") return DType::F16;
  throw Error(ErrorCode::InvalidArgument,
              "--dtype " + dtype + ": choose auto, half, float16, bfloat16, float or float32");
}

DType kv_dtype(const formats::Checkpoint& checkpoint, const EngineOptions& options) {
  const DType by_dtype = float_cache_dtype(options);
  const std::string& wanted = options.kv_cache_dtype;
  if (wanted == "fp8" || wanted == "fp8_e4m3") return DType::F8E4M3;
  if (wanted == "float16" || wanted == "half") return DType::F16;
  if (wanted == "bfloat16") return DType::BF16;
  if (wanted != "auto") {
    throw Error(ErrorCode::InvalidArgument,
                "--kv-cache-dtype " + wanted + ": choose auto, fp8, fp8_e4m3, float16 or bfloat16");
  }
  if (options.exact || !asks_for_fp8_cache(checkpoint)) return by_dtype;
  log::info("KV cache in FP8, as the checkpoint asks (kv_cache_scheme); --kv-cache-dtype float16 keeps it 16-bit");
  return DType::F8E4M3;
}

std::vector<backend::KvSpec> kv_specs(const LoadedModel& model, DType dtype) {
  if (dtype != DType::F8E4M3) return model.decoder->kv_specs(dtype);
  const std::vector<models::KvScales> scales = models::read_kv_scales(*model.checkpoint, model.decoder->config());
  if (scales.empty()) {
    log::warning(
        "FP8 KV cache without scales in the checkpoint: 1.0 is used, and keys beyond 448 are clipped; nibble "
        "quantize --method fp8 --kv-cache-scales calibrates them");
  }
  return model.decoder->kv_specs(dtype, scales);
}

std::string read_tokenizer_json(const formats::Checkpoint& checkpoint) {
  if (auto text = checkpoint.side_file("tokenizer.json")) return std::move(*text);
  throw Error(ErrorCode::NotFound,
              checkpoint.path().string() +
                  ": no tokenizer.json; convert tokenizer.model with transformers "
                  "(AutoTokenizer.from_pretrained(…).save_pretrained(…)) and put the file beside the model");
}

Json read_side_json(const formats::Checkpoint& checkpoint, std::string_view name) {
  const auto text = checkpoint.side_file(name);
  return text ? parse_json(*text, (checkpoint.path() / name).string()) : Json();
}

/// Every id that ends a sequence: config.json's, generation_config.json's and the tokenizer's.
std::vector<std::int32_t> collect_eos_ids(const LoadedModel& model, const models::ModelConfig& config) {
  std::vector<std::int32_t> ids;
  const auto add = [&](std::int64_t id) {
    const auto token = static_cast<std::int32_t>(id);
    if (id >= 0 && id < config.vocab_size && std::ranges::find(ids, token) == ids.end()) ids.push_back(token);
  };
  for (const std::int64_t id : config.eos_token_ids) add(id);
  if (model.generation_config.is_object() && model.generation_config.contains("eos_token_id")) {
    const Json& eos = model.generation_config["eos_token_id"];
    for (const Json& id : eos.is_array() ? eos : Json::array({eos})) {
      if (id.is_number_integer()) add(id.get<std::int64_t>());
    }
  }
  if (const auto id = model.tokenizer->eos_token_id()) add(*id);
  return ids;
}

std::int64_t choose_max_model_len(const models::ModelConfig& config, const EngineOptions& options) {
  if (options.max_model_len <= 0) return config.max_position_embeddings;
  if (options.max_model_len > config.max_position_embeddings) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--max-model-len {}: the model was made for {} positions (max_position_embeddings)",
                            options.max_model_len, config.max_position_embeddings));
  }
  return options.max_model_len;
}

/// One sequence of max_model_len must fit the pool: else the length the user gave is an error, the config's is lowered.
std::int64_t fit_max_model_len(std::int64_t max_model_len, std::int64_t num_blocks, const EngineOptions& options,
                               const backend::Memory& memory) {
  const std::int64_t capacity = num_blocks * options.block_size;
  if (max_model_len <= capacity) return max_model_len;
  const char* flag = memory.is_devices_own && options.kv_cache_memory_bytes == 0 ? "--gpu-memory-utilization"
                                                                                 : "--kv-cache-memory-bytes";
  if (options.max_model_len > 0) {
    throw Error(ErrorCode::OutOfMemory,
                fmt::format("--max-model-len {}: the KV cache holds {} tokens; lower it or raise {}", max_model_len,
                            capacity, flag));
  }
  log::warning("context limited to {} tokens of {}: that is what the KV cache holds; see {}", capacity, max_model_len,
               flag);
  return capacity;
}

std::string describe(const LoadedModel& model, const models::ModelConfig& config, const EngineOptions& options) {
  std::string method = "not quantized";
  if (const auto& quantization = model.checkpoint->quantization()) {
    method = quantization->method;
    if (method != "fp8") method += fmt::format(" {} bit", quantization->bits);
    if (quantization->group_size > 0 && method != "fp8") method += fmt::format(" group {}", quantization->group_size);
  } else if (quantizes_to_fp8(*model.checkpoint, options)) {
    method = "fp8 made at load";
  }
  return fmt::format("{}, {} layers, {}, {}", config.architecture, config.num_hidden_layers, method,
                     model.backend->name());
}

/// `build`, whose errors for want of memory say first what does not fit and what to do.
template <class Build>
auto within_memory(const std::string& advice, const Build& build) {
  try {
    return build();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::OutOfMemory) throw;
    throw Error(ErrorCode::OutOfMemory, fmt::format("{} ({})", advice, error.what()));
  }
}

}  // namespace

namespace {

/// "auto" is CUDA where there is a GPU and a plug-in that runs on it. Exact figures stay those of the CPU.
std::unique_ptr<backend::Backend> make_backend(const EngineOptions& options,
                                               const backend::BackendOptions& backend_options) {
  if (options.device == "auto" && !options.exact) {
    try {
      return backend::make_backend("cuda", backend_options);
    } catch (const Error& error) {
      // Without a plug-in this is a build for the CPU; one that does not run is worth a line.
      if (error.code() == ErrorCode::Unavailable) {
        log::info("--device auto is the CPU: {}", error.what());
      } else if (error.code() != ErrorCode::NotFound) {
        throw;
      }
    }
  }
  return backend::make_backend(options.device == "auto" ? "cpu" : options.device, backend_options);
}

}  // namespace

LoadedModel open_model(const std::filesystem::path& path, const EngineOptions& options) {
  LoadedModel model;
  model.checkpoint = open_checkpoint(path, options);
  check_quantization(*model.checkpoint, options);
  model.cache_dtype = kv_dtype(*model.checkpoint, options);
  models::ModelConfig config;
  try {
    config = models::parse_model_config(model.checkpoint->config());
  } catch (const Error& error) {
    throw error.in((path / "config.json").string());
  }
  model.tokenizer_config = read_side_json(*model.checkpoint, "tokenizer_config.json");
  model.generation_config = read_side_json(*model.checkpoint, "generation_config.json");
  model.chat_template_jinja = model.checkpoint->side_file("chat_template.jinja").value_or("");
  try {
    model.tokenizer = tokenizer::Tokenizer::from_json(read_tokenizer_json(*model.checkpoint), model.tokenizer_config);
  } catch (const Error& error) {
    throw error.in((path / "tokenizer.json").string());
  }
  model.eos_token_ids = collect_eos_ids(model, config);
  model.max_model_len = choose_max_model_len(config, options);

  model.backend =
      make_backend(options, {.precision = options.exact ? backend::Precision::Exact : backend::Precision::Fast,
                             .fp8_activations = fp8_activations(*model.checkpoint, options),
                             .num_threads = options.num_threads});
  model.load_options.max_positions = model.max_model_len;
  if (model.backend->memory().is_devices_own) {
    model.load_options.read_ahead_threads = model.backend->pool().num_threads();
  }
  if (quantizes_to_fp8(*model.checkpoint, options)) {
    model.load_options.quantize_to_fp8 = weights::Fp8Granularity::PerChannel;
  }
  model.description = describe(model, config, options);
  return model;
}

namespace {

/// Decode steps as the backend records them, before the first request.
void capture_steps(LoadedModel& model, const EngineOptions& options) {
  if (options.enforce_eager) return;
  const std::int64_t free_before = model.backend->memory().free_bytes;
  const auto start = std::chrono::steady_clock::now();
  const std::int64_t max_blocks = (model.max_model_len + options.block_size - 1) / options.block_size;
  const std::size_t num_sizes = model.decoder->capture(*model.cache, options.max_num_seqs, max_blocks);
  if (num_sizes == 0) return;
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  log::info("decode steps recorded for {} batch sizes in {:.2f} s, {}", num_sizes, seconds.count(),
            format_bytes(static_cast<double>(free_before - model.backend->memory().free_bytes)));
}

}  // namespace

LoadedModel load_model(const std::filesystem::path& path, const EngineOptions& options) {
  LoadedModel model = open_model(path, options);
  model.decoder = within_memory(
      fmt::format("the weights of {} do not fit into memory: quantize the model to fewer bits", path.string()),
      [&] { return models::load_decoder(*model.checkpoint, *model.backend, model.load_options); });
  auto specs = kv_specs(model, model.cache_dtype);
  within_memory(fmt::format("a step of {} tokens and {} sequences does not fit beside {} of weights: lower "
                            "--max-num-batched-tokens or --max-num-seqs",
                            options.max_num_batched_tokens, options.max_num_seqs,
                            format_bytes(static_cast<double>(model.decoder->weight_bytes()))),
                [&] {
                  model.decoder->reserve(options.max_num_batched_tokens,
                                         std::max<std::int64_t>(options.max_num_seqs, 64));
                  if (model.backend->memory().is_devices_own) run_largest_step(*model.decoder, specs, options);
                });
  const backend::Memory memory = model.backend->memory();
  const std::int64_t block_bytes = backend::kv_block_bytes(specs, options.block_size);
  const std::int64_t num_blocks = choose_num_blocks(block_bytes, model.max_model_len, options, memory);
  model.max_model_len = fit_max_model_len(model.max_model_len, num_blocks, options, memory);
  within_memory(
      "the KV cache and what steps need beside it do not fit: lower --gpu-memory-utilization, "
      "--kv-cache-memory-bytes or --num-gpu-blocks-override, whichever is given",
      [&] {
        model.cache = model.backend->make_kv_cache(std::move(specs), num_blocks, options.block_size);
        capture_steps(model, options);
      });
  log::info("{} of weights, KV cache of {} tokens in {}",
            format_bytes(static_cast<double>(model.decoder->weight_bytes())), num_blocks * options.block_size,
            format_bytes(static_cast<double>(num_blocks * block_bytes)));
  return model;
}

}  // namespace nibble::engine
