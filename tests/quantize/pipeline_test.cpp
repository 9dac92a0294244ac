#include "quantize/pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <set>
#include <string>

#include "core/file.h"
#include "quantize/rtn.h"
#include "tiny_model.h"

namespace nibble::quantize {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class PipelineTest : public ::testing::Test {
 protected:
  PipelineTest() {
    write_tiny_model(folder_ / "model");
    write_text_file(folder_ / "text.txt", varied_text(3000));
  }

  PipelineOptions options(const std::string& method, const std::string& output = "out") const {
    PipelineOptions options;
    options.model = folder_ / "model";
    options.output = folder_ / output;
    options.method = method;
    options.method_options.grid.symmetry = find_method(method).default_symmetry;
    options.method_options.group_size = 32;
    options.calibration = {.sources = {(folder_ / "text.txt").string()}, .num_samples = 16, .seq_len = 64, .seed = 3};
    options.device = "reference";
    return options;
  }

  static std::string error_of(const PipelineOptions& options) {
    try {
      run_pipeline(options);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  TemporaryFolder folder_;
};

TEST_F(PipelineTest, EveryMethodWritesACheckpointThatReadsBack) {
  for (const std::string method : {"rtn", "gptq", "awq"}) {
    run_pipeline(options(method, method));
    const auto checkpoint = formats::Checkpoint::open(folder_ / method);
    ASSERT_TRUE(checkpoint->quantization().has_value());
    EXPECT_EQ(checkpoint->quantization()->method, method == "awq" ? "awq" : "gptq");
    EXPECT_EQ(checkpoint->quantization()->group_size, 32);
    EXPECT_EQ(checkpoint->quantization()->sym, method != "awq");
    EXPECT_EQ(checkpoint->config()["torch_dtype"], "float16");
    const auto linear = checkpoint->linear("model.layers.1.mlp.down_proj", {64, 96});
    EXPECT_TRUE(std::holds_alternative<weights::GroupedIntWeights>(linear));
    EXPECT_TRUE(checkpoint->side_file("tokenizer.json").has_value());
    EXPECT_EQ(checkpoint->tensor("model.embed_tokens.weight").dtype(), DType::F16);
    EXPECT_FALSE(checkpoint->contains("model.layers.1.mlp.down_proj.weight"));
  }
}

TEST_F(PipelineTest, RtnWritesTheNearestCodesOfTheFloatWeights) {
  run_pipeline(options("rtn"));
  const auto source = formats::Checkpoint::open(folder_ / "model");
  const auto written = formats::Checkpoint::open(folder_ / "out");
  ThreadPool pool(1);
  const std::string name = "model.layers.0.self_attn.o_proj";
  const Tensor weight = weights::dequantize(source->linear(name, {64, 64}));
  const auto expected = round_to_nearest(weight.matrix<float>(), 32, {4, Symmetry::Symmetric}, pool);
  EXPECT_TRUE(same_bytes(weights::dequantize(written->linear(name, {64, 64})), values_of(expected)));
}

TEST_F(PipelineTest, GptqErrorsAreBelowRtn) {
  for (const std::string method : {"gptq", "awq"}) {
    const PipelineReport report = run_pipeline(options(method, method));
    ASSERT_EQ(report.blocks.size(), 2u);
    for (const BlockReport& block : report.blocks) EXPECT_LT(block.method_error, block.rtn_error) << method;
  }
}

TEST_F(PipelineTest, AsymmetricGptqIsVersion2AndDescActWritesItsGroups) {
  PipelineOptions asymmetric = options("gptq");
  asymmetric.method_options.grid.symmetry = Symmetry::Asymmetric;
  asymmetric.method_options.group_index = GroupIndex::DescAct;
  EXPECT_EQ(run_pipeline(asymmetric).checkpoint_format, "gptq_v2");
  const auto checkpoint = formats::Checkpoint::open(folder_ / "out");
  EXPECT_TRUE(checkpoint->quantization()->desc_act);
  const auto linear = checkpoint->linear("model.layers.0.mlp.down_proj", {64, 96});
  EXPECT_TRUE(std::get<weights::GroupedIntWeights>(linear).has_g_idx());
}

TEST_F(PipelineTest, AwqOfOtherWidthsIsWrittenAsGptq) {
  PipelineOptions narrow = options("awq", "narrow");
  narrow.method_options.grid.bits = 3;
  EXPECT_EQ(run_pipeline(narrow).checkpoint_format, "gptq_v2");
  PipelineOptions symmetric = options("awq", "symmetric");
  symmetric.method_options.grid = {.bits = 8, .symmetry = Symmetry::Symmetric};
  EXPECT_EQ(run_pipeline(symmetric).checkpoint_format, "gptq");
  const auto checkpoint = formats::Checkpoint::open(folder_ / "narrow");
  EXPECT_EQ(checkpoint->quantization()->bits, 3);
  const auto linear = checkpoint->linear("model.layers.1.mlp.down_proj", {64, 96});
  EXPECT_EQ(std::get<weights::GroupedIntWeights>(linear).bits, 3);
}

TEST_F(PipelineTest, AwqTakesEveryGroupSizeAndSymmetry) {
  for (const std::int64_t group_size : {std::int64_t{16}, std::int64_t{32}, std::int64_t{-1}}) {
    for (const Symmetry symmetry : {Symmetry::Symmetric, Symmetry::Asymmetric}) {
      PipelineOptions run = options("awq", "group");
      std::filesystem::remove_all(run.output);
      run.method_options.group_size = group_size;
      run.method_options.grid.symmetry = symmetry;
      for (const BlockReport& block : run_pipeline(run).blocks) EXPECT_LT(block.method_error, block.rtn_error);
      const auto checkpoint = formats::Checkpoint::open(run.output);
      EXPECT_EQ(checkpoint->quantization()->group_size, group_size);
      EXPECT_EQ(checkpoint->quantization()->sym, symmetry == Symmetry::Symmetric);
    }
  }
}

TEST_F(PipelineTest, BytesDependOnSeedButNotOnThreadsOrRun) {
  for (const std::string method : {"gptq", "awq"}) {
    std::set<std::string> outputs;
    for (const int threads : {1, 2, 1}) {
      PipelineOptions run = options(method, method + std::to_string(outputs.size()) + std::to_string(threads));
      std::filesystem::remove_all(run.output);
      run.num_threads = threads;
      run_pipeline(run);
      outputs.insert(read_text_file(run.output / "model.safetensors"));
    }
    EXPECT_EQ(outputs.size(), 1u) << method;
    PipelineOptions other_seed = options(method, method + "-seed");
    other_seed.calibration.seed = 4;
    run_pipeline(other_seed);
    outputs.insert(read_text_file(other_seed.output / "model.safetensors"));
    EXPECT_EQ(outputs.size(), 2u) << method;
  }
}

TEST_F(PipelineTest, GuidedGptqIsAnOrdinaryCheckpointWhateverTheThreads) {
  std::set<std::string> outputs;
  for (const int threads : {1, 2}) {
    PipelineOptions run = options("gptq", "guided" + std::to_string(threads));
    run.method_options.guidance = Guidance::EndLoss;
    run.num_threads = threads;
    const PipelineReport report = run_pipeline(run);
    ASSERT_EQ(report.blocks.size(), 2u);
    EXPECT_EQ(report.blocks[0].name, "model.layers.0");
    for (const BlockReport& block : report.blocks) EXPECT_LT(block.method_error, 0.5 * block.rtn_error);
    outputs.insert(read_text_file(run.output / "model.safetensors"));
    const auto checkpoint = formats::Checkpoint::open(run.output);
    EXPECT_EQ(checkpoint->quantization()->checkpoint_format, "gptq");
    // Symmetric scales of both signs, as the format allows.
    const auto linear =
        std::get<weights::GroupedIntWeights>(checkpoint->linear("model.layers.0.mlp.up_proj", {96, 64}));
    const Tensor scales = to_dtype(linear.scales, DType::F32);
    EXPECT_GT(std::ranges::count_if(scales.span<float>(), [](float s) { return s < 0; }), 10);
    std::size_t num_files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(run.output)) {
      EXPECT_EQ(entry.path().string().find("nibble-backward"), std::string::npos);
      ++num_files;
    }
    EXPECT_EQ(num_files, 5u);  // model.safetensors, config.json, tokenizer.json, nibble_report.json, report.html
  }
  EXPECT_EQ(outputs.size(), 1u);
}

TEST_F(PipelineTest, KeptStatisticsGiveTheBytesOfARunOfItsOwn) {
  const auto bytes_of = [&](PipelineOptions run, const std::string& output, const std::string& statistics) {
    run.output = folder_ / output;
    if (!statistics.empty()) run.statistics = folder_ / statistics;
    run_pipeline(run);
    return read_text_file(run.output / "model.safetensors");
  };
  PipelineOptions wide = options("gptq");
  wide.method_options.guidance = Guidance::EndLoss;
  PipelineOptions narrow = wide;
  narrow.method_options.grid.bits = 3;
  const PipelineOptions table = options("squeezellm");
  PipelineOptions guided_table = table;
  guided_table.method_options.guidance = Guidance::EndLoss;

  EXPECT_EQ(bytes_of(wide, "a1", ""), bytes_of(wide, "a2", "kept"));
  // What these read is what the first has kept: any other statistics would give other bytes.
  std::filesystem::last_write_time(folder_ / "kept" / "block-00000.safetensors", {});
  EXPECT_EQ(bytes_of(narrow, "b1", ""), bytes_of(narrow, "b2", "kept"));
  EXPECT_EQ(bytes_of(table, "c1", ""), bytes_of(table, "c2", "kept"));
  EXPECT_EQ(bytes_of(guided_table, "d1", ""), bytes_of(guided_table, "d2", "kept"));
  EXPECT_EQ(std::filesystem::last_write_time(folder_ / "kept" / "block-00000.safetensors"),
            std::filesystem::file_time_type{});
}

TEST_F(PipelineTest, StatisticsOfSomethingElseAreRefusedByName) {
  PipelineOptions run = options("squeezellm", "first");
  run.statistics = folder_ / "kept";
  run_pipeline(run);
  run.output = folder_ / "second";
  run.method_options.loss.labels = LossLabels::Text;
  EXPECT_NE(error_of(run).find("\"loss_labels\""), std::string::npos);
  run.method_options.loss.labels = LossLabels::Sampled;
  run.calibration.num_samples = 8;
  EXPECT_NE(error_of(run).find("\"calibration\""), std::string::npos);
  run.statistics = folder_ / "model";
  EXPECT_NE(error_of(run).find("holds other files"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(run.output));
}

TEST_F(PipelineTest, MissingBlocksOfStatisticsAreComputedAndBrokenOnesNamed) {
  PipelineOptions run = options("squeezellm", "first");
  run.statistics = folder_ / "kept";
  run_pipeline(run);
  const std::filesystem::path file = folder_ / "kept" / "block-00001.safetensors";
  const std::string whole = read_text_file(file);
  std::filesystem::remove(file);
  run.output = folder_ / "second";
  run_pipeline(run);
  EXPECT_EQ(read_text_file(file), whole);
  write_text_file(file, whole.substr(0, whole.size() / 2));
  run.output = folder_ / "third";
  EXPECT_NE(error_of(run).find("block-00001.safetensors"), std::string::npos);
}

TEST_F(PipelineTest, GuidedGptqRefusesGroupsOfItsOwnOrder) {
  PipelineOptions guided = options("gptq");
  guided.method_options.guidance = Guidance::EndLoss;
  guided.method_options.group_index = GroupIndex::DescAct;
  EXPECT_THAT(error_of(guided), HasSubstr("leave --desc-act out"));
}

TEST_F(PipelineTest, DriftCorrectionChangesWhatFollowsALossWhateverTheThreads) {
  const auto linear = [&](const std::string& output, const std::string& name, const Shape& shape) {
    return weights::dequantize(formats::Checkpoint::open(folder_ / output)->linear(name, shape));
  };
  for (const std::string method : {"gptq", "awq"}) {
    std::set<std::string> outputs;
    for (const int threads : {1, 2}) {
      PipelineOptions run = options(method, method + std::to_string(threads));
      run.method_options.drift_correction = 0.5;
      run.num_threads = threads;
      for (const BlockReport& block : run_pipeline(run).blocks) EXPECT_LT(block.method_error, block.rtn_error);
      outputs.insert(read_text_file(run.output / "model.safetensors"));
    }
    EXPECT_EQ(outputs.size(), 1u) << method;
    run_pipeline(options(method, method + "-plain"));
    // The first stage's inputs have not drifted; everything behind it has.
    const std::string first = "model.layers.0.self_attn.q_proj";
    const std::string second = "model.layers.0.self_attn.o_proj";
    EXPECT_TRUE(same_bytes(linear(method + "1", first, {64, 64}), linear(method + "-plain", first, {64, 64})));
    EXPECT_FALSE(same_bytes(linear(method + "1", second, {64, 64}), linear(method + "-plain", second, {64, 64})));
  }
}

TEST_F(PipelineTest, DriftCorrectionLeavesSkippedLayersAlone) {
  PipelineOptions run = options("gptq");
  run.method_options.drift_correction = 1;
  run.skip_layers = {"layers.1.mlp.down_proj"};
  run_pipeline(run);
  const std::string skipped = "model.layers.1.mlp.down_proj.weight";
  const auto source = formats::Checkpoint::open(folder_ / "model");
  const auto written = formats::Checkpoint::open(folder_ / "out");
  EXPECT_EQ(to_dtype(written->tensor(skipped), DType::F32).matrix<float>().row(7)[3],
            to_dtype(source->tensor(skipped), DType::F32).matrix<float>().row(7)[3]);
}

TEST_F(PipelineTest, DriftCorrectionIsRefusedWhereItHasNoMeaning) {
  for (const std::string method : {"rtn", "fp8", "squeezellm"}) {
    PipelineOptions run = options(method);
    run.method_options.drift_correction = 0.5;
    EXPECT_THAT(error_of(run), HasSubstr("--drift-correction goes with gptq and awq, not with " + method));
  }
  PipelineOptions guided = options("gptq");
  guided.method_options.guidance = Guidance::EndLoss;
  guided.method_options.drift_correction = 0.5;
  EXPECT_THAT(error_of(guided), HasSubstr("not with --guided"));
  for (const double strength : {-0.1, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    PipelineOptions run = options("gptq");
    run.method_options.drift_correction = strength;
    EXPECT_THAT(error_of(run), HasSubstr("choose 0 (none)"));
  }
}

TEST_F(PipelineTest, UnknownMethodListsTheKnownOnes) {
  PipelineOptions unknown = options("rtn");
  unknown.method = "squeeze";
  EXPECT_THAT(error_of(unknown), HasSubstr("unknown method squeeze; nibble knows rtn, awq, gptq"));
}

TEST_F(PipelineTest, GroupSizeThatDoesNotDivideNamesLayersAndSizesThatDo) {
  PipelineOptions bad = options("gptq");
  bad.method_options.group_size = 64;  // divides 64 but not 96
  EXPECT_THAT(error_of(bad), AllOf(HasSubstr("group size 64 does not divide in_features 96"),
                                   HasSubstr("model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj"),
                                   HasSubstr("choose --group-size 32, 16, -1")));
  EXPECT_FALSE(std::filesystem::exists(bad.output));
}

TEST_F(PipelineTest, OutputFolderInUseIsRefusedBeforeAnythingRuns) {
  std::filesystem::create_directory(folder_ / "out");
  EXPECT_EQ(error_of(options("rtn", "out")), "no error");
  EXPECT_THAT(error_of(options("rtn", "out")), HasSubstr("exists already"));
}

TEST_F(PipelineTest, QuantizedModelIsNotQuantizedAgain) {
  run_pipeline(options("rtn", "once"));
  PipelineOptions again = options("gptq", "twice");
  again.model = folder_ / "once";
  EXPECT_THAT(error_of(again), HasSubstr("is quantized already (gptq, 4 bits)"));
}

TEST_F(PipelineTest, OptionsWithoutMeaningAreErrors) {
  PipelineOptions bits = options("awq");
  bits.method_options.grid.bits = 5;
  EXPECT_THAT(error_of(bits), HasSubstr("choose 2, 3, 4 or 8"));
  PipelineOptions desc_act = options("awq");
  desc_act.method_options.group_index = GroupIndex::DescAct;
  EXPECT_THAT(error_of(desc_act), HasSubstr("--desc-act"));
  PipelineOptions damp = options("gptq");
  damp.method_options.damp_percent = -1;
  EXPECT_THAT(error_of(damp), HasSubstr("--damp-percent"));
  PipelineOptions long_samples = options("gptq");
  long_samples.calibration.seq_len = 129;
  EXPECT_THAT(error_of(long_samples), HasSubstr("context of 128"));
}

TEST_F(PipelineTest, TooLittleTextIsAnErrorAndLeavesNoFolder) {
  write_text_file(folder_ / "short.txt", "too short");
  PipelineOptions little = options("gptq");
  little.calibration.sources = {(folder_ / "short.txt").string()};
  EXPECT_THAT(error_of(little), HasSubstr("9 tokens are less than one sample of 64"));
  EXPECT_FALSE(std::filesystem::exists(little.output));
}

TEST_F(PipelineTest, ActivationsThatAreNotFiniteNameTheLayer) {
  write_tiny_model(folder_ / "broken", std::numeric_limits<float>::quiet_NaN());
  for (const std::string method : {"gptq", "awq"}) {
    PipelineOptions broken = options(method, method);
    broken.model = folder_ / "broken";
    EXPECT_THAT(error_of(broken), AllOf(HasSubstr("model.layers.0.self_attn.q_proj"), HasSubstr("NaN or infinity")))
        << method;
  }
}

}  // namespace
}  // namespace nibble::quantize
