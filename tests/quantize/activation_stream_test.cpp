#include "quantize/activation_stream.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/file.h"
#include "models/config.h"
#include "quantize/calibration_linear.h"
#include "quantize/float_block.h"
#include "tiny_model.h"

namespace nibble::quantize {
namespace {

/// A tiny model's first block on the reference backend, and tokens to run through it.
class ActivationStreamTest : public ::testing::Test {
 protected:
  ActivationStreamTest() {
    write_tiny_model(folder_ / "model");
    checkpoint_ = formats::Checkpoint::open(folder_ / "model");
    config_ = models::parse_model_config(checkpoint_->config());
    backend_ = backend::make_backend("reference", {.precision = backend::Precision::Exact, .num_threads = 2});
    rope_ = backend_->make_rope(
        {.inv_freq = models::rope_inverse_frequencies(config_), .attention_factor = 1, .max_positions = 100});
    embedding_ = backend_->make_embedding({Tensor::borrow(checkpoint_->tensor("model.embed_tokens.weight"))});
    samples_.num_samples = 45;  // 20 to a chunk of 2048 tokens: two full chunks and a part
    samples_.seq_len = 100;
    for (std::int32_t t = 0; t < 4500; ++t) samples_.tokens.push_back((t * 37 + t / 100) % 256);
    block_ = load_float_block(*checkpoint_, models::find_architecture("LlamaForCausalLM").block(config_, 0));
  }

  models::DecoderBlock decoder_block() const {
    return {block_.spec, Tensor::copy_of(block_.input_norm), Tensor::copy_of(block_.post_attention_norm)};
  }
  models::DecoderBlock decoder_block_with_linears() const {
    models::DecoderBlock decoder = decoder_block();
    for (std::size_t s = 0; s < block_.stages.size(); ++s) {
      decoder.set_linear(s, make_calibration_linear(block_.stages[s], backend_->pool()));
    }
    return decoder;
  }
  ActivationStream stream() const {
    ActivationStream stream(*backend_, *rope_, samples_);
    stream.embed(*embedding_, config_.hidden_size);
    return stream;
  }

  void save(const ActivationStream& stream, const std::string& name) const {
    ActivationStream::save(std::array{&stream}, folder_ / name);
  }
  void restore(ActivationStream& stream, const std::string& name) const {
    ActivationStream::restore(std::array{&stream}, folder_ / name);
  }

  TemporaryFolder folder_;
  std::unique_ptr<formats::Checkpoint> checkpoint_;
  models::ModelConfig config_;
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<backend::Rope> rope_;
  std::unique_ptr<backend::Embedding> embedding_;
  CalibrationSamples samples_;
  FloatBlock block_;
};

void expect_same(const StageInputs& a, const StageInputs& b) {
  EXPECT_EQ(a.num_tokens, b.num_tokens);
  EXPECT_TRUE(same_bytes(a.gram, b.gram));
  EXPECT_TRUE(same_bytes(a.mean_magnitude, b.mean_magnitude));
}

TEST_F(ActivationStreamTest, StageByStageSeesWhatOnePassSees) {
  const models::DecoderBlock whole = decoder_block_with_linears();
  ActivationStream observed = stream();
  const std::vector<StageInputs> expected = observed.observe(whole);

  models::DecoderBlock decoder = decoder_block();
  ActivationStream walked = stream();
  expect_same(walked.enter(decoder), expected[0]);
  for (std::size_t s = 0; s < block_.stages.size(); ++s) {
    decoder.set_linear(s, make_calibration_linear(block_.stages[s], backend_->pool()));
    if (s + 1 < block_.stages.size()) expect_same(walked.advance(decoder, s), expected[s + 1]);
  }
  walked.leave(decoder);
  // The next block's first inputs are the block's output: they agree only if hidden states came through.
  observed.enter(whole);
  for (std::size_t s = 0; s + 1 < block_.stages.size(); ++s) observed.advance(whole, s);
  observed.leave(whole);
  expect_same(walked.enter(decoder), observed.enter(whole));
}

TEST_F(ActivationStreamTest, ScratchFilesHoldWhatMemoryHolds) {
  std::filesystem::create_directory(folder_ / "scratch");
  const auto walk = [&](ActivationStream& stream, int num_blocks) {
    std::vector<StageInputs> seen;
    models::DecoderBlock decoder = decoder_block_with_linears();
    for (int b = 0; b < num_blocks; ++b) {
      for (StageInputs& inputs : stream.observe(decoder)) seen.push_back(std::move(inputs));
      seen.push_back(stream.enter(decoder));
      for (std::size_t s = 0; s + 1 < block_.stages.size(); ++s) seen.push_back(stream.advance(decoder, s));
      stream.leave(decoder);
    }
    return seen;
  };
  ActivationStream in_memory = stream();
  const auto expected = walk(in_memory, 2);
  save(in_memory, "expected");
  for (const Residence hidden : {Residence::Memory, Residence::ScratchFile}) {
    ActivationStream spilled(*backend_, *rope_, samples_);
    spilled.set_storage({hidden, Residence::ScratchFile, folder_ / "scratch"});
    spilled.embed(*embedding_, config_.hidden_size);
    const auto first = walk(spilled, 1);
    for (std::size_t i = 0; i < first.size(); ++i) expect_same(first[i], expected[i]);
    // Through a state and back, into a stream that holds something else.
    save(spilled, "state");
    ActivationStream resumed(*backend_, *rope_, samples_);
    resumed.set_storage({hidden, Residence::ScratchFile, folder_ / "scratch"});
    resumed.embed(*embedding_, config_.hidden_size);
    restore(resumed, "state");
    const auto second = walk(resumed, 1);
    for (std::size_t i = 0; i < second.size(); ++i) expect_same(second[i], expected[first.size() + i]);
    save(resumed, "state");
    EXPECT_EQ(read_text_file(folder_ / "state"), read_text_file(folder_ / "expected"));
  }
  std::filesystem::resize_file(folder_ / "state", 1000);
  EXPECT_THROW(restore(in_memory, "state"), Error);
}

TEST_F(ActivationStreamTest, MagnitudeAndGramAgreeWithTheBackendsOwnLinears) {
  models::DecoderBlock reference = decoder_block();
  for (std::size_t s = 0; s < block_.stages.size(); ++s) {
    std::vector<weights::LinearPart> parts;
    for (const FloatLinear& linear : block_.stages[s]) {
      weights::LinearPart part;
      part.weights = weights::DenseWeights{Tensor::copy_of(linear.weight)};
      parts.push_back(std::move(part));
    }
    reference.set_linear(s, backend_->make_linear(std::move(parts), {}));
  }
  const auto expected = stream().observe(reference);
  const auto inputs = stream().observe(decoder_block_with_linears());
  for (std::size_t s = 0; s < inputs.size(); ++s) {
    const auto x = inputs[s].mean_magnitude.span<float>();
    const auto y = expected[s].mean_magnitude.span<float>();
    for (std::size_t k = 0; k < x.size(); ++k) {
      EXPECT_NEAR(x[k], y[k], 1e-4 * y[k]);
      // Σ x² ≥ (Σ |x|)² / n, with equality only for a constant.
      const auto channel = static_cast<std::int64_t>(k);
      const double squares = inputs[s].gram.matrix<float>().row(channel)[channel];
      EXPECT_GT(squares, 4500.0 * x[k] * x[k]);
    }
  }
}

// Norm weights twice as large make x' = 2 x, and so a drift of Σ x xᵀ; the residual streams do not differ yet.
TEST_F(ActivationStreamTest, DriftIsTheProductOfDifferenceAndInput) {
  std::filesystem::create_directory(folder_ / "scratch");
  Tensor doubled = Tensor::copy_of(block_.input_norm);
  for (float& w : doubled.span<float>()) w *= 2;
  const models::DecoderBlock doubling(block_.spec, std::move(doubled), Tensor::copy_of(block_.post_attention_norm));
  ActivationStream reference(*backend_, *rope_, samples_, {.kind = InputStatistics::Kind::None});
  reference.embed(*embedding_, config_.hidden_size);
  EXPECT_TRUE(reference.enter(doubling).gram.is_empty());
  for (const Residence residence : {Residence::Memory, Residence::ScratchFile}) {
    ActivationStream stream(*backend_, *rope_, samples_);
    stream.set_storage({residence, residence, folder_ / "scratch"});
    stream.embed(*embedding_, config_.hidden_size);
    const StageInputs inputs = stream.enter(decoder_block());
    const Tensor drift = stream.input_drift_from(reference);
    const auto gram = inputs.gram.span<float>();
    EXPECT_GT(gram[0], 1000);
    for (std::size_t i = 0; i < gram.size(); ++i) EXPECT_NEAR(drift.span<float>()[i], gram[i], 0.05);
    const Tensor none = stream.residual_drift_from(reference);
    for (const float value : none.span<float>()) EXPECT_EQ(value, 0);
  }
}

// Two streams of different tokens, against a sum from the embedding table: the first input is its norm.
TEST_F(ActivationStreamTest, ResidualDriftIsThatOfTheHiddenStates) {
  std::filesystem::create_directory(folder_ / "scratch");
  CalibrationSamples others = samples_;
  for (std::int32_t& token : others.tokens) token = (token + 1) % 256;
  ActivationStream reference(*backend_, *rope_, others, {.kind = InputStatistics::Kind::None});
  reference.embed(*embedding_, config_.hidden_size);
  reference.enter(decoder_block());
  std::vector<Tensor> drifts;
  for (const Residence residence : {Residence::Memory, Residence::ScratchFile}) {
    ActivationStream stream(*backend_, *rope_, samples_);
    stream.set_storage({residence, residence, folder_ / "scratch"});
    stream.embed(*embedding_, config_.hidden_size);
    stream.enter(decoder_block());
    drifts.push_back(stream.residual_drift_from(reference));
  }
  EXPECT_TRUE(same_bytes(drifts[0], drifts[1]));
  // Σ_t (r' - r)_i x_j from the tables: the first input is the norm of the embedding.
  const Tensor table = to_dtype(checkpoint_->tensor("model.embed_tokens.weight"), DType::F32);
  const auto rows = table.matrix<float>();
  for (const auto& [i, j] : {std::pair{0, 0}, std::pair{5, 40}, std::pair{63, 2}}) {
    double expected = 0;
    for (std::size_t t = 0; t < samples_.tokens.size(); ++t) {
      const float* r = rows.row(samples_.tokens[t]);
      double squares = 0;
      for (std::int64_t k = 0; k < 64; ++k) squares += static_cast<double>(r[k]) * r[k];
      const double x =
          r[j] / std::sqrt(squares / 64 + 1e-5) * block_.input_norm.span<float>()[static_cast<std::size_t>(j)];
      expected += (rows.row(others.tokens[t])[i] - r[i]) * x;
    }
    EXPECT_NEAR(drifts[0].matrix<float>().row(i)[j], expected, 1e-3 * std::abs(expected) + 1e-2);
  }
}

}  // namespace
}  // namespace nibble::quantize
