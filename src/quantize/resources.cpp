#include "quantize/resources.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "core/log.h"
#include "core/progress.h"
#include "quantize/journal.h"
#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

constexpr std::int64_t kFloat = sizeof(float);
// Program, libraries, tokenizer, and pages of the source file that the kernel has not taken back yet.
constexpr std::int64_t kBaseMemory = 300'000'000;

/// Shapes of one stage of a block.
struct StageShape {
  std::int64_t in_features = 0;
  std::int64_t out_features = 0;     // of all linears
  std::int64_t largest_weights = 0;  // of one linear
  bool adds_to_hidden = false;
  std::int64_t num_weights() const { return in_features * out_features; }
};

std::vector<StageShape> stage_shapes(const models::BlockSpec& spec) {
  std::vector<StageShape> stages;
  for (const models::Stage& stage : spec.stages) {
    StageShape& shape = stages.emplace_back();
    shape.adds_to_hidden = stage.adds_to_hidden;
    for (const std::string& linear : stage.linears) {
      const Shape size = models::linear_shape(spec, linear);
      shape.in_features = size[1];
      shape.out_features += size[0];
      shape.largest_weights = std::max(shape.largest_weights, size[0] * size[1]);
    }
  }
  return stages;
}

/// Codes, scales, zeros, tables: a little more than the bits say.
std::int64_t stored_bytes(const StageShape& stage, const Plan& plan, const MethodOptions& options) {
  const std::int64_t weights = stage.num_weights();
  switch (plan.method->makes) {
    case Makes::GroupedInt: {
      const std::int64_t groups = weights / options.group_size_of(stage.in_features);
      return weights * options.grid.bits / 8 + groups * (2 + (options.grid.bits + 7) / 8) + 4 * stage.in_features;
    }
    case Makes::Fp8: return weights + 4 * stage.out_features;
    case Makes::Codebook: {
      const auto sparse = static_cast<std::int64_t>(static_cast<double>(weights) * options.squeezellm.sparsity);
      return weights * options.grid.bits / 8 + stage.out_features * (std::int64_t{4} << options.grid.bits) + 8 * sparse;
    }
  }
  return 0;
}

enum class DriftCorrection : std::uint8_t { No, Yes };

DriftCorrection drift_correction_of(const MethodOptions& options) {
  return options.drift_correction > 0 ? DriftCorrection::Yes : DriftCorrection::No;
}

/// What the drift of a stage is summed up in.
std::int64_t drift_memory(const StageShape& stage) {
  return stage.in_features * (stage.in_features + (stage.adds_to_hidden ? stage.out_features : 0)) * kFloat;
}

/// Gram matrices that live at once beside their stage: the matrix, a factor of it.
std::int64_t gram_memory(const StageShape& stage, Calibration calibration) {
  const std::int64_t gram = stage.in_features * stage.in_features * kFloat;
  switch (calibration) {
    case Calibration::None:
    case Calibration::Ranges: return 0;
    case Calibration::Stages:
    case Calibration::Block: return 2 * gram;
    case Calibration::Loss: return 3 * gram;
  }
  return 0;
}

/// The float weights, the stage's dequantized ones and their fused copy, Gram matrices.
std::int64_t block_memory(const std::vector<StageShape>& stages, Calibration calibration, DriftCorrection drift) {
  std::int64_t weights = 0;
  std::int64_t widest = 0;
  std::int64_t all_grams = 0;
  for (const StageShape& stage : stages) {
    weights += stage.num_weights() * kFloat;
    const std::int64_t copies = calibration == Calibration::None ? 1 : 2;
    const std::int64_t grams = gram_memory(stage, calibration);
    widest = std::max(widest, copies * stage.num_weights() * kFloat + grams);
    if (drift == DriftCorrection::Yes) {  // is gone before the stage is quantized
      widest = std::max(widest, stage.num_weights() * kFloat + grams + drift_memory(stage));
    }
    all_grams += stage.in_features * stage.in_features * kFloat;
  }
  if (calibration == Calibration::Block) widest = std::max(widest, weights + all_grams);  // the float block's pass
  if (calibration == Calibration::Loss) return 3 * weights + 2 * all_grams + widest;  // and statistics of all stages
  return weights + widest;
}

double flops_of(const std::vector<StageShape>& stages, Calibration calibration, DriftCorrection drift,
                double num_tokens) {
  double forward = 0;
  double gram = 0;
  double solve = 0;
  for (const StageShape& stage : stages) {
    const auto in = static_cast<double>(stage.in_features);
    forward += 2 * num_tokens * static_cast<double>(stage.num_weights());
    gram += num_tokens * in * in;
    solve += 2 * in * in * static_cast<double>(stage.out_features) + in * in * in;
  }
  // The float stream, the product of two inputs, three products with the weights.
  const double correction = drift == DriftCorrection::Yes ? forward + 2 * gram + 3 * solve : 0;
  switch (calibration) {
    case Calibration::None: return 0;
    case Calibration::Ranges: return forward;
    case Calibration::Stages: return forward + gram + 3 * solve + correction;
    case Calibration::Block: return 2 * (forward + gram) + 20 * solve + correction;
    case Calibration::Loss: return 4 * forward + 4 * gram + 6 * solve;
  }
  return 0;
}

/// Of matrix products here, from one that takes some milliseconds.
double measure_flops_per_second(ThreadPool& pool) {
  constexpr std::int64_t kSize = 768;
  const Tensor x = Tensor::zeros(DType::F32, {kSize, kSize});
  Tensor y = Tensor::zeros(DType::F32, {kSize, kSize});
  multiply_transposed(x.matrix<float>(), x.matrix<float>(), y.matrix<float>(), pool);
  const auto start = std::chrono::steady_clock::now();
  multiply_transposed(x.matrix<float>(), x.matrix<float>(), y.matrix<float>(), pool);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return 2.0 * kSize * kSize * kSize / seconds.count();
}

std::string bytes_text(std::int64_t bytes) {
  return format_bytes(static_cast<double>(bytes));
}

/// Of the folder or the nearest above it that exists.
std::int64_t free_disk(std::filesystem::path folder) {
  folder = std::filesystem::absolute(folder);
  while (!std::filesystem::exists(folder) && folder.has_relative_path()) folder = folder.parent_path();
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(folder, error);
  return error ? std::numeric_limits<std::int64_t>::max() : static_cast<std::int64_t>(space.available);
}

void expect_memory(const Resources& resources, std::int64_t limit, std::string_view what) {
  if (resources.least_memory() <= limit) return;
  throw Error(ErrorCode::OutOfMemory,
              fmt::format("quantizing one block takes about {} ({} for its weights and statistics, {} for a batch of "
                          "activations), and {} is {}; a machine with more memory is needed",
                          bytes_text(resources.least_memory()), bytes_text(resources.block_memory),
                          bytes_text(resources.batch_memory), what, bytes_text(limit)));
}

}  // namespace

Resources estimate_resources(const Plan& plan, const PipelineOptions& options) {
  const MethodOptions& method = options.method_options;
  const Calibration calibration = plan.method->calibration(method);
  const models::BlockSpec& spec = plan.blocks.front();
  const std::vector<StageShape> stages = stage_shapes(spec);
  const std::int64_t num_tokens =
      calibration == Calibration::None ? 0 : options.calibration.num_samples * options.calibration.seq_len;
  const std::int64_t batch_tokens = std::min(num_tokens, std::max<std::int64_t>(2048, options.calibration.seq_len));
  const auto num_blocks = static_cast<std::int64_t>(plan.blocks.size());

  Resources resources;
  const DriftCorrection drift = drift_correction_of(method);
  const std::int64_t num_streams = drift == DriftCorrection::Yes ? 2 : 1;
  resources.block_memory = kBaseMemory + block_memory(stages, calibration, drift);
  std::int64_t widths = 2 * spec.hidden_size;
  std::set<std::int64_t> input_widths;  // a stream keeps buffers of each for all tokens
  for (const StageShape& stage : stages) {
    resources.widest_input = std::max(resources.widest_input, stage.in_features);
    input_widths.insert(stage.in_features);
    widths += stage.in_features + stage.out_features;
    resources.output_disk += num_blocks * stored_bytes(stage, plan, method);
  }
  const bool has_loss = calibration == Calibration::Loss;
  resources.batch_memory = (has_loss ? 2 : num_streams) * batch_tokens * widths * kFloat;
  resources.hidden_memory = num_streams * num_tokens * spec.hidden_size * kFloat;
  const std::int64_t kept_widths = std::accumulate(input_widths.begin(), input_widths.end(), std::int64_t{0});
  resources.input_memory =
      has_loss || calibration == Calibration::None ? 0 : num_streams * num_tokens * kept_widths * kFloat;
  const std::int64_t tables = (plan.config.tie_word_embeddings ? 1 : 2) * plan.config.vocab_size * spec.hidden_size;
  if (has_loss) resources.batch_memory += plan.config.vocab_size * (spec.hidden_size + 1024) * kFloat;
  resources.output_disk += 2 * tables;
  resources.scratch_disk = (has_loss ? num_blocks + 2 : 2) * resources.hidden_memory;
  resources.flops =
      static_cast<double>(num_blocks) * flops_of(stages, calibration, drift, static_cast<double>(num_tokens));
  return resources;
}

StreamStorage choose_storage(const Resources& resources, std::int64_t max_memory) {
  StreamStorage storage;
  const std::int64_t room = max_memory - resources.least_memory();
  if (room < resources.hidden_memory + resources.input_memory) storage.inputs = Residence::ScratchFile;
  if (room < resources.hidden_memory) storage.hidden = Residence::ScratchFile;
  return storage;
}

std::int64_t preflight(const Resources& resources, const PipelineOptions& options, std::int64_t free_memory,
                       ThreadPool& pool) {
  const std::int64_t max_memory = options.max_memory > 0 ? options.max_memory : free_memory;
  expect_memory(resources, max_memory, options.max_memory > 0 ? "--max-memory" : "what is free here");
  const StreamStorage storage = choose_storage(resources, max_memory);
  std::int64_t memory = resources.most_memory();
  std::int64_t disk = resources.output_disk + resources.scratch_disk;
  const auto spill = [&](Residence residence, std::int64_t bytes) {
    if (residence == Residence::Memory) return;
    memory -= bytes;
    disk += bytes;
  };
  spill(storage.inputs, resources.input_memory);
  spill(storage.hidden, resources.hidden_memory);
  // A stopped run goes on in what it has written, or writes over it.
  const std::int64_t written = Journal::bytes_in(options.output);
  const std::int64_t available = free_disk(options.output);
  std::string time;
  if (resources.flops > 0) {
    // Half of the peak goes into everything that is no matrix product.
    time = fmt::format(", roughly {}", format_duration(2 * resources.flops / measure_flops_per_second(pool)));
  }
  log::info("needs about {} of memory ({} free), {} of disk ({} free){}", bytes_text(memory), bytes_text(free_memory),
            bytes_text(disk), bytes_text(available), time);
  if (storage.inputs == Residence::ScratchFile) log::info("activations beyond that go to a scratch file");
  if (disk - written > available) {
    throw Error(
        ErrorCode::Unavailable,
        fmt::format("{}: the run needs about {} of disk ({} for the checkpoint, the rest for scratch files) and "
                    "{} are free; make room or choose another --output",
                    options.output.string(), bytes_text(disk), bytes_text(resources.output_disk),
                    bytes_text(available)));
  }
  return max_memory;
}

}  // namespace nibble::quantize
