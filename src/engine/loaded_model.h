#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/engine.h"
#include "formats/checkpoint.h"
#include "models/decoder.h"
#include "models/loader.h"

namespace nibble::engine {

/// Everything an engine owns besides its requests, built by `load_model` in the order of the members.
struct LoadedModel {
  std::unique_ptr<formats::Checkpoint> checkpoint;  // outlives the decoder, whose embedding may borrow it
  std::unique_ptr<tokenizer::Tokenizer> tokenizer;
  Json generation_config;
  Json tokenizer_config;
  std::string chat_template_jinja;
  std::vector<std::int32_t> eos_token_ids;
  std::unique_ptr<backend::Backend> backend;
  models::LoadOptions load_options;  // for the weights
  DType cache_dtype = DType::F16;
  std::unique_ptr<models::Decoder> decoder;
  std::unique_ptr<backend::KvCache> cache;
  std::int64_t max_model_len = 0;
  std::string description;
};

/// All but decoder and cache, for an engine that brings in the weights by itself. Errors: as load_model.
LoadedModel open_model(const std::filesystem::path& model, const EngineOptions& options);

/// Errors: whatever checkpoint, tokenizer and device report; InvalidArgument where options contradict the checkpoint.
LoadedModel load_model(const std::filesystem::path& model, const EngineOptions& options);

}  // namespace nibble::engine
