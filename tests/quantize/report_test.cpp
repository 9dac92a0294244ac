#include "quantize/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

namespace nibble::quantize {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Report two_blocks() {
  Report report;
  report.model = "models/<tiny> & co";
  report.arguments = {"--method", "gptq", "--bits", "4"};
  report.identity = {{"nibble", "0.1.0"}, {"calibration", {{"seed", 7}}}};
  report.checkpoint_format = "gptq";
  report.input_bytes = 4000;
  report.output_bytes = 1000;
  for (const int block : {0, 1}) {
    for (const char* kind : {"self_attn.q_proj", "mlp.down_proj"}) {
      LayerReport layer;
      layer.name = "model.layers." + std::to_string(block) + "." + kind;
      layer.kind = "int4 g64 sym";
      layer.out_features = 64;
      layer.in_features = block == 0 ? 64 : 192;
      layer.bits_per_weight = block == 0 ? 4.5 : 8.5;
      layer.weight_error = 0.01;
      layer.rtn_error = 0.02;
      layer.output_error = 0.005;
      layer.scale_min = 1e-3f;
      layer.scale_max = 2e-2f;
      layer.clipped_fraction = 0.001;
      layer.seconds = 1.5;
      report.layers.push_back(layer);
    }
  }
  return report;
}

Judgment some_judgment() {
  return {.kl = 0.1032,
          .kl_standard_error = 0.0041,
          .top1 = 0.812,
          .ppl = 26.81,
          .float_ppl = 24.7,
          .text = "a<b>.txt, held out",
          .num_windows = 4,
          .window_len = 512};
}

TEST(Report, ReadsBackWhatItWrote) {
  Report report = two_blocks();
  EXPECT_EQ(to_json(report_from_json(to_json(report))), to_json(report));
  report.judged = some_judgment();
  EXPECT_EQ(to_json(report_from_json(to_json(report))), to_json(report));
  report.judged->max_kl = 0.1;
  report.judged->is_rejected = true;
  EXPECT_EQ(to_json(report_from_json(to_json(report))), to_json(report));
}

TEST(Report, AModelThatGivesNaNReadsBackAsSuch) {
  Report report = two_blocks();
  report.judged = some_judgment();
  report.judged->kl = report.judged->ppl = std::numeric_limits<double>::quiet_NaN();
  const Report read = report_from_json(parse_json(to_json(report).dump(), "report"));
  EXPECT_TRUE(std::isnan(read.judged->kl));
  EXPECT_TRUE(std::isnan(read.judged->ppl));
  EXPECT_EQ(read.judged->top1, 0.812);
}

TEST(Report, MissingPartsOfAJudgmentAreNamed) {
  Report report = two_blocks();
  report.judged = some_judgment();
  Json json = to_json(report);
  json["judged"].erase("kl");
  try {
    report_from_json(json);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("judged: kl"));
  }
}

TEST(ReportPage, SaysWhatItCostWhereThatWasMeasured) {
  Report report = two_blocks();
  EXPECT_THAT(render_html(report), Not(HasSubstr("What it cost")));
  report.judged = some_judgment();
  const std::string page = render_html(report);
  for (const char* part : {"0.1032 ± 0.0041 nats", "81.2 %", "26.81", "24.70", "4 windows of 512 tokens of a&lt;b&gt;"})
    EXPECT_THAT(page, HasSubstr(part));
  EXPECT_THAT(page, Not(HasSubstr("allowed")));
  report.judged->max_kl = 0.1;
  report.judged->is_rejected = true;
  EXPECT_THAT(render_html(report), HasSubstr("rejected"));
}

TEST(Report, BitsAreWeighedByTheSizesOfLinears) {
  EXPECT_DOUBLE_EQ(two_blocks().bits_per_weight(), (4.5 * 64 + 8.5 * 192) / 256);
  EXPECT_DOUBLE_EQ(two_blocks().seconds(), 6);
  EXPECT_EQ(Report().bits_per_weight(), 0);
}

TEST(Report, MissingKeysAndOtherVersionsAreNamed) {
  for (const char* key : {"model", "arguments", "identity", "layers"}) {
    Json json = to_json(two_blocks());
    json.erase(key);
    try {
      report_from_json(json);
      FAIL() << key;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(key));
    }
  }
  Json future = to_json(two_blocks());
  future["report_version"] = 2;
  EXPECT_THROW(report_from_json(future), Error);
}

TEST(ReportPage, ShowsEveryLinearAndEscapesNames) {
  const std::string page = render_html(two_blocks());
  EXPECT_THAT(page, HasSubstr("models/&lt;tiny&gt; &amp; co"));
  EXPECT_THAT(page, Not(HasSubstr("<tiny>")));
  for (const LayerReport& layer : two_blocks().layers) EXPECT_THAT(page, HasSubstr(layer.name + ": 0.5 %"));
  EXPECT_THAT(page, HasSubstr("4.00×"));
  EXPECT_THAT(page, HasSubstr("if rounded to nearest"));
}

TEST(ReportPage, NeedsNothingFromElsewhere) {
  const std::string page = render_html(two_blocks());
  for (const char* word : {"http:", "https:", "src=", "href=", "<script", "url("})
    EXPECT_THAT(page, Not(HasSubstr(word)));
}

TEST(ReportPage, SaysThatErrorsOfOutputsAreNotKnownWithoutCalibration) {
  Report report = two_blocks();
  for (LayerReport& layer : report.layers) layer.output_error = layer.rtn_error = std::nullopt;
  const std::string page = render_html(report);
  EXPECT_THAT(page, HasSubstr("Weight error by block"));
  EXPECT_THAT(page, Not(HasSubstr("Output error by linear")));
  report.layers.clear();
  EXPECT_THAT(render_html(report), HasSubstr("0 linears"));
}

}  // namespace
}  // namespace nibble::quantize
