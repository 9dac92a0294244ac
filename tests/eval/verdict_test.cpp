#include "eval/verdict.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"

namespace nibble::eval {
namespace {

using testing::HasSubstr;

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
    return error.what();
  }
  return "no error";
}

Metric accuracy(std::string name, int right, int total) {
  Metric metric{{name, name, MetricKind::Accuracy}, {}};
  for (int i = 0; i < total; ++i) metric.samples.push_back(i < right ? 1 : 0);
  return metric;
}

Metric perplexity(double nll) {
  return {{"ppl", "perplexity", MetricKind::Perplexity}, {nll, nll, nll}};
}
Metric divergence(double kl) {
  return {{"kl", "KL", MetricKind::Divergence}, {kl, kl}};
}

TEST(Degradation, OfAccuracyIsTheShareOfTheBaselineThatIsLost) {
  const auto loss = degradation(accuracy("a", 80, 100), accuracy("a", 76, 100));
  EXPECT_NEAR(loss->percent, 5.0, 1e-9);  // not 4 points
  // 4 of 100 differ: standard error of the mean difference sqrt(0.04 * 0.96 / 99), over 0.8
  EXPECT_NEAR(loss->standard_error, 100 * std::sqrt(0.04 * 0.96 / 99) / 0.8, 1e-9);
}

TEST(Degradation, OfPerplexityIsItsRise) {
  const auto loss = degradation(perplexity(std::log(20.0)), perplexity(std::log(21.0)));
  EXPECT_NEAR(loss->percent, 5.0, 1e-9);
}

TEST(Degradation, IsNegativeWhereTheModelIsBetter) {
  EXPECT_LT(degradation(accuracy("a", 50, 100), accuracy("a", 51, 100))->percent, 0);
  EXPECT_LT(degradation(perplexity(3.1), perplexity(3.0))->percent, 0);
}

TEST(Degradation, OfABaselineThatKnowsNothingIsZero) {
  EXPECT_EQ(degradation(accuracy("a", 0, 10), accuracy("a", 0, 10))->percent, 0);
}

TEST(Degradation, DoesNotExistForKl) {
  EXPECT_FALSE(degradation(divergence(0.1), divergence(0.2)).has_value());
}

TEST(Verdict, WithoutThresholdsIsNotJudged) {
  const Verdict verdict = judge({accuracy("a", 90, 100)}, {accuracy("a", 1, 100)}, {});
  EXPECT_EQ(verdict.outcome, Outcome::NotJudged);
  EXPECT_EQ(name(verdict.outcome), "not judged");
}

TEST(Verdict, AcceptsUpToAndIncludingTheThreshold) {
  const Thresholds thresholds = parse_thresholds("5.0", std::nullopt);
  EXPECT_EQ(judge({accuracy("a", 100, 100)}, {accuracy("a", 95, 100)}, thresholds).outcome, Outcome::Accepted);
  EXPECT_EQ(judge({accuracy("a", 100, 100)}, {accuracy("a", 94, 100)}, thresholds).outcome, Outcome::Rejected);
}

TEST(Verdict, OfOneNumberJudgesAccuraciesOnly) {
  const Verdict verdict = judge({accuracy("a", 100, 100), perplexity(2)}, {accuracy("a", 100, 100), perplexity(9)},
                                parse_thresholds("1", std::nullopt));
  EXPECT_EQ(verdict.outcome, Outcome::Accepted);
  EXPECT_THAT(verdict.judgments, testing::SizeIs(1));
}

TEST(Verdict, ANamedThresholdOverridesTheGeneralOne) {
  const std::vector<Metric> baseline{accuracy("a", 100, 100), accuracy("b", 100, 100)};
  const std::vector<Metric> model{accuracy("a", 100, 100), accuracy("b", 90, 100)};
  EXPECT_EQ(judge(baseline, model, parse_thresholds("1", std::nullopt)).outcome, Outcome::Rejected);
  EXPECT_EQ(judge(baseline, model, parse_thresholds("1,b=10.5", std::nullopt)).outcome, Outcome::Accepted);
  EXPECT_EQ(judge(baseline, model, parse_thresholds("a=0", std::nullopt)).judgments.size(), 1u);
}

TEST(Verdict, KlHasItsOwnThreshold) {
  const Metric none{{"kl", "KL", MetricKind::Divergence}, {}};
  const Thresholds thresholds = parse_thresholds("", 0.14);
  EXPECT_EQ(judge({none}, {divergence(0.14)}, thresholds).outcome, Outcome::Accepted);
  EXPECT_EQ(judge({none}, {divergence(0.1401)}, thresholds).outcome, Outcome::Rejected);
}

TEST(Verdict, RejectsWhatIsNotANumber) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(judge({divergence(0)}, {divergence(nan)}, parse_thresholds("", 1.0)).outcome, Outcome::Rejected);
  EXPECT_EQ(judge({perplexity(2)}, {perplexity(nan)}, parse_thresholds("ppl=50", std::nullopt)).outcome,
            Outcome::Rejected);
}

TEST(Thresholds, RefuseWhatIsNoPercentage) {
  for (const char* text : {"one", "-1", "1,", "ppl=", "ppl=x", "nan", "1e999", "1%"}) {
    EXPECT_THAT(message_of([&] { parse_thresholds(text, std::nullopt); }), HasSubstr("--max-degradation")) << text;
  }
  EXPECT_THAT(message_of([] { parse_thresholds("ppl=1,ppl=2", std::nullopt); }), HasSubstr("ppl is named twice"));
  EXPECT_THAT(message_of([] { parse_thresholds("1,2", std::nullopt); }), HasSubstr("give one"));
  EXPECT_THAT(message_of([] { parse_thresholds("", -0.1); }), HasSubstr("--max-kl"));
}

TEST(Thresholds, MustJudgeSomething) {
  const std::vector<MetricSpec> ppl{{"ppl", "perplexity", MetricKind::Perplexity}};
  const std::vector<MetricSpec> kl{{"kl", "KL", MetricKind::Divergence}, {"top1", "top-1", MetricKind::Agreement}};
  const auto check_of = [](const char* text, std::optional<double> max_kl, const std::vector<MetricSpec>& metrics) {
    return message_of([&] { check_thresholds(parse_thresholds(text, max_kl), metrics); });
  };
  EXPECT_THAT(check_of("1", std::nullopt, ppl), HasSubstr("ppl=1"));
  EXPECT_THAT(check_of("arc=1", std::nullopt, ppl), HasSubstr("arc is none of the metrics that can degrade here: ppl"));
  EXPECT_THAT(check_of("kl=0.2", std::nullopt, kl), HasSubstr("--max-kl 0.2"));
  EXPECT_THAT(check_of("top1=1", std::nullopt, kl), HasSubstr("top1 is none"));
  EXPECT_THAT(check_of("", 0.1, ppl), HasSubstr("add kl to --tasks"));
  EXPECT_EQ(check_of("ppl=1", std::nullopt, ppl), "no error");
}

}  // namespace
}  // namespace nibble::eval
