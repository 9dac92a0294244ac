#include "models/loader.h"

#include <string>
#include <utility>
#include <vector>

#include "models/stage_reader.h"

namespace nibble::models {
namespace {

using weights::LinearPart;

/// A 70B model's largest stage has 0.23 GB in 4 bits and 0.94 GB in 16.
constexpr std::int64_t kReadAheadBytes = 2'000'000'000;

Tensor load_norm(const formats::Checkpoint& checkpoint, const std::string& name, std::int64_t width,
                 backend::Backend& backend) {
  const TensorView weight = checkpoint.tensor(name);
  if (weight.shape() != Shape{width} || !is_float(weight.dtype())) {
    throw Error(ErrorCode::Corrupt, name + ": expected a float vector of " + std::to_string(width) + ", found " +
                                        std::string(nibble::name(weight.dtype())) + " " + weight.shape().to_string());
  }
  return backend.make_vector(weight);
}

weights::DenseWeights load_table(const formats::Checkpoint& checkpoint, const std::string& name, const Shape& shape) {
  const TensorView table = checkpoint.tensor(name);
  if (table.shape() != shape || !is_float(table.dtype())) {
    throw Error(ErrorCode::Corrupt, name + ": expected " + shape.to_string() + " as config.json says, found " +
                                        std::string(nibble::name(table.dtype())) + " " + table.shape().to_string());
  }
  return {Tensor::borrow(table)};
}

std::unique_ptr<backend::Linear> pack_stage(const formats::Checkpoint& checkpoint, const BlockSpec& spec,
                                            const Stage& stage, std::vector<LinearPart> parts,
                                            backend::Backend& backend, const LoadOptions& options) {
  const std::string name = spec.module_name(stage.linears.front());
  if (options.quantize_to_fp8) {
    try {
      backend.quantize_to_fp8(parts, *options.quantize_to_fp8);
    } catch (const Error& error) {
      throw error.in(name);
    }
    for (const std::string& relative : stage.linears) checkpoint.drop_pages(spec.module_name(relative));
  }
  auto linear = backend.make_linear(std::move(parts), {.name = name});
  for (const std::string& relative : stage.linears) checkpoint.release(spec.module_name(relative));
  return linear;
}

/// `reader` stands at the block's first stage.
DecoderBlock pack_block(const formats::Checkpoint& checkpoint, const BlockSpec& spec, StageReader& reader,
                        backend::Backend& backend, const LoadOptions& options) {
  const std::int64_t width = spec.hidden_size;
  Tensor input_norm = load_norm(checkpoint, spec.module_name(spec.input_norm) + ".weight", width, backend);
  Tensor post_norm = load_norm(checkpoint, spec.module_name(spec.post_attention_norm) + ".weight", width, backend);
  DecoderBlock block(spec, std::move(input_norm), std::move(post_norm));
  for (std::size_t s = 0; s < spec.stages.size(); ++s) {
    block.set_linear(s, pack_stage(checkpoint, spec, spec.stages[s], reader.next(), backend, options));
  }
  return block;
}

}  // namespace

DecoderBlock load_block(const formats::Checkpoint& checkpoint, BlockSpec spec, backend::Backend& backend,
                        const LoadOptions& options) {
  const std::vector<BlockSpec> one{std::move(spec)};
  StageReader reader(checkpoint, one, 0, 0);
  return pack_block(checkpoint, one.front(), reader, backend, options);
}

std::unique_ptr<backend::Embedding> load_embedding(const formats::Checkpoint& checkpoint, const ModelConfig& config,
                                                   backend::Backend& backend) {
  const std::string embedding(find_architecture(config.architecture).embedding);
  return backend.make_embedding(load_table(checkpoint, embedding + ".weight", {config.vocab_size, config.hidden_size}));
}

Tensor load_final_norm(const formats::Checkpoint& checkpoint, const ModelConfig& config, backend::Backend& backend) {
  const std::string norm(find_architecture(config.architecture).final_norm);
  return load_norm(checkpoint, norm + ".weight", config.hidden_size, backend);
}

std::unique_ptr<backend::Linear> load_lm_head(const formats::Checkpoint& checkpoint, const ModelConfig& config,
                                              backend::Backend& backend, const backend::Embedding* embedding) {
  const Architecture& architecture = find_architecture(config.architecture);
  const std::string table = std::string(architecture.embedding) + ".weight";
  const std::string head(architecture.lm_head);
  const Shape shape{config.vocab_size, config.hidden_size};
  const bool has_own =
      !config.tie_word_embeddings && (checkpoint.contains(head + ".weight") || checkpoint.contains(head + ".qweight"));
  if (!has_own && !config.tie_word_embeddings) {
    throw Error(ErrorCode::NotFound, head +
                                         ".weight: not in the checkpoint, and config.json does not tie it to the "
                                         "embedding (tie_word_embeddings)");
  }
  std::vector<LinearPart> parts(1);
  parts[0].weights = has_own ? checkpoint.linear(head, shape) : load_table(checkpoint, table, shape);
  auto linear = backend.make_linear(std::move(parts),
                                    {.name = head, .is_lm_head = true, .tied_to = has_own ? nullptr : embedding});
  if (has_own) {
    checkpoint.release(head);
  } else {
    checkpoint.drop_pages(architecture.embedding);  // the embedding still borrows the table
  }
  return linear;
}

std::unique_ptr<Decoder> load_decoder(const formats::Checkpoint& checkpoint, backend::Backend& backend,
                                      const LoadOptions& options) {
  Decoder::Parts parts;
  parts.config = parse_model_config(checkpoint.config());
  const ModelConfig& config = parts.config;
  const Architecture& architecture = find_architecture(config.architecture);
  parts.embedding = load_embedding(checkpoint, config, backend);
  parts.rope = backend.make_rope(
      {.inv_freq = rope_inverse_frequencies(config),
       .attention_factor = 1,
       .max_positions = options.max_positions > 0 ? options.max_positions : config.max_position_embeddings});
  // First, because it reads the largest table whole: the peak of resident memory falls while little else is there.
  parts.lm_head = load_lm_head(checkpoint, config, backend, parts.embedding.get());
  std::vector<BlockSpec> specs;
  for (std::int64_t layer_idx = 0; layer_idx < config.num_hidden_layers; ++layer_idx) {
    specs.push_back(architecture.block(config, layer_idx));
  }
  StageReader reader(checkpoint, specs, options.read_ahead_threads, kReadAheadBytes);
  for (const BlockSpec& spec : specs) {
    parts.blocks.push_back(pack_block(checkpoint, spec, reader, backend, options));
  }
  parts.final_norm = load_final_norm(checkpoint, config, backend);
  return std::make_unique<Decoder>(backend, std::move(parts));
}

}  // namespace nibble::models
