// usage: nibble_loss_statistics MODEL SAMPLES.json LABELS FISHER OUTPUT BLOCK…
//
// The end-loss statistics of the named blocks over the samples of SAMPLES.json (an array of arrays of token ids, all of
// one length) as a folder OUTPUT with model.safetensors: per linear `NAME.fisher` and `NAME.guided_gram`, per stage
// `FIRST LINEAR.gram`, all f32. LABELS is text or sampled, FISHER token or sequence. Prints the mean loss of a token.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "core/json.h"
#include "models/block.h"
#include "quantize/loss_walk.h"

namespace {

using namespace nibble;

quantize::CalibrationSamples read_samples(const std::filesystem::path& file) {
  quantize::CalibrationSamples samples;
  for (const Json& sample : read_json_file(file)) {
    const auto tokens = sample.get<std::vector<std::int32_t>>();
    samples.tokens.insert(samples.tokens.end(), tokens.begin(), tokens.end());
    samples.seq_len = static_cast<std::int64_t>(tokens.size());
    ++samples.num_samples;
  }
  return samples;
}

void write(formats::CheckpointWriter& writer, const std::vector<quantize::FloatLinear>& linears,
           const quantize::StageLossStatistics& statistics) {
  writer.add(linears.front().name + ".gram", statistics.gram);
  for (std::size_t i = 0; i < linears.size(); ++i) {
    writer.add(linears[i].name + ".fisher", statistics.linears[i].fisher);
    writer.add(linears[i].name + ".guided_gram", statistics.linears[i].guided_gram);
  }
}

void run(const std::vector<std::string>& arguments) {
  const auto checkpoint = formats::Checkpoint::open(arguments[0]);
  quantize::Plan plan;
  plan.config = models::parse_model_config(checkpoint->config());
  plan.architecture = &models::find_architecture(plan.config.architecture);
  for (std::int64_t b = 0; b < plan.config.num_hidden_layers; ++b) {
    plan.blocks.push_back(plan.architecture->block(plan.config, b));
  }
  const quantize::LossOptions options{
      .labels = arguments[2] == "text" ? quantize::LossLabels::Text : quantize::LossLabels::Sampled,
      .fisher_form = arguments[3] == "token" ? quantize::FisherForm::Token : quantize::FisherForm::Sequence,
      .seed = 0};
  const quantize::LossNeeds needs{.fisher = true, .guided_gram = true, .gram = true};
  const std::set<std::string> wanted(arguments.begin() + 5, arguments.end());
  const auto backend = backend::make_backend("cpu", {.precision = backend::Precision::Exact});
  formats::CheckpointWriter writer(arguments[4]);
  quantize::LossWalk walk(*checkpoint, plan, *backend, read_samples(arguments[1]), options, needs,
                          arguments[4] + "/block-inputs");
  std::printf("%.6f\n", walk.forward());
  for (std::int64_t b = plan.config.num_hidden_layers - 1; b >= 0; --b) {
    const quantize::FloatBlock block =
        quantize::load_float_block(*checkpoint, plan.blocks[static_cast<std::size_t>(b)]);
    const auto statistics = walk.backward(block, b);
    if (!wanted.contains(std::to_string(b))) continue;
    for (std::size_t s = 0; s < block.stages.size(); ++s) write(writer, block.stages[s], statistics[s]);
  }
  writer.finish({Json::object(), {}});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) {
    std::fprintf(stderr, "usage: %s MODEL SAMPLES.json LABELS FISHER OUTPUT BLOCK…\n", argv[0]);
    return 2;
  }
  try {
    run({argv + 1, argv + argc});
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
