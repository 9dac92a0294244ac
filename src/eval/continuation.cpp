#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "core/progress.h"
#include "eval/log_likelihood.h"
#include "eval/task.h"

namespace nibble::eval {
namespace {

constexpr std::int64_t kDefaultNumPlaces = 100;
constexpr std::size_t kNumChoices = 4;

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers from the same seed on every platform, which the standard's
/// distributions do not promise.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t bound) {
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % bound;
  }

 private:
  std::uint64_t state_;
};

/// A place of the text: its continuation among three of other places, in any order.
struct Item {
  std::int64_t position = 0;  // token where the context begins
  std::size_t answer = 0;
  std::array<Continuation, kNumChoices> choices;
};

struct Layout {
  std::span<const std::int32_t> tokens;
  std::int64_t context_len = 0;
  std::int64_t continuation_len = 0;
  std::int64_t num_places = 0;  // non-overlapping chunks of context and continuation

  std::span<const std::int32_t> context(std::int64_t place) const {
    return tokens.subspan(static_cast<std::size_t>(place * chunk_len()), static_cast<std::size_t>(context_len));
  }
  std::span<const std::int32_t> continuation(std::int64_t place) const {
    return tokens.subspan(static_cast<std::size_t>(place * chunk_len() + context_len),
                          static_cast<std::size_t>(continuation_len));
  }
  std::int64_t chunk_len() const { return context_len + continuation_len; }
};

/// Places whose continuations all differ, the true one at a random index.
Item make_item(const Layout& layout, std::int64_t place, Random& random) {
  constexpr int kMaxTries = 1000;
  std::vector<std::int64_t> places{place};
  for (int tries = 0; places.size() < kNumChoices; ++tries) {
    if (tries == kMaxTries) {
      throw Error(ErrorCode::InvalidArgument,
                  "--text: its continuations repeat too often to choose among four different ones");
    }
    const auto other = static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(layout.num_places)));
    const bool is_new = std::ranges::none_of(places, [&](std::int64_t known) {
      return std::ranges::equal(layout.continuation(known), layout.continuation(other));
    });
    if (is_new) places.push_back(other);
  }
  Item item;
  item.position = place * layout.chunk_len();
  item.answer = static_cast<std::size_t>(random.below(kNumChoices));
  std::swap(places[0], places[item.answer]);
  const auto context = layout.context(place);
  for (std::size_t c = 0; c < kNumChoices; ++c) {
    const auto continuation = layout.continuation(places[c]);
    item.choices[c].tokens.assign(context.begin(), context.end());
    item.choices[c].tokens.insert(item.choices[c].tokens.end(), continuation.begin(), continuation.end());
    item.choices[c].num_scored = layout.continuation_len;
  }
  return item;
}

/// Which of four continuations does the model find likeliest? The text makes the questions, so accuracy can be measured
/// on one's own domain. All choices have the same number of tokens: no normalisation by length. Chance is 25 %.
class ContinuationChoice : public Task {
 public:
  std::vector<MetricSpec> metrics() const override {
    return {{"continuation", "continuation (1 of 4)", MetricKind::Accuracy}};
  }

  bool needs_text() const override { return true; }

  std::vector<TaskResult> run(TaskContext& context) const override {
    const std::vector<Item> items = make_items(context);
    std::vector<TaskResult> results;
    for (Model& model : context.models()) results.push_back(answer(model, items));
    return results;
  }

 private:
  static std::vector<Item> make_items(TaskContext& context) {
    const EvalOptions& options = context.options();
    Layout layout{context.text_tokens(), options.continuation_context_len, options.continuation_len, 0};
    layout.num_places = static_cast<std::int64_t>(layout.tokens.size()) / layout.chunk_len();
    if (layout.num_places < static_cast<std::int64_t>(kNumChoices)) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("--text: {} tokens; the continuation task needs four places of {} tokens",
                              layout.tokens.size(), layout.chunk_len()));
    }
    const std::int64_t count = std::min(options.limit > 0 ? options.limit : kDefaultNumPlaces, layout.num_places);
    Random random(options.seed);
    std::vector<Item> items;
    items.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
      items.push_back(make_item(layout, i * layout.num_places / count, random));  // spread over the whole text
    }
    return items;
  }

  TaskResult answer(Model& model, const std::vector<Item>& items) const {
    TaskResult result{{{metrics().front(), {}}}, Json::array()};
    Progress progress(fmt::format("continuation: {}", model.name), static_cast<std::int64_t>(items.size()), "places");
    progress.update(0);
    for (const Item& item : items) {
      const std::vector<double> sums = log_likelihoods(model, item.choices);
      const auto chosen = static_cast<std::size_t>(std::ranges::max_element(sums) - sums.begin());
      result.metrics[0].samples.push_back(chosen == item.answer ? 1 : 0);
      result.rows.push_back(
          {{"position", item.position}, {"answer", item.answer}, {"chosen", chosen}, {"log_likelihoods", sums}});
      progress.update(static_cast<std::int64_t>(result.rows.size()));
    }
    return result;
  }
};

}  // namespace

std::unique_ptr<Task> make_continuation(std::string_view /*argument*/) {
  return std::make_unique<ContinuationChoice>();
}

}  // namespace nibble::eval
