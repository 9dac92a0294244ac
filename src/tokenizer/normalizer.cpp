#include "tokenizer/normalizer.h"

#include <fmt/format.h>

#include <vector>

#include "tokenizer/unicode.h"

namespace nibble::tokenizer {
namespace {

class SequenceNormalizer final : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}

  std::string apply(std::string text, RegexScratch& scratch) const override {
    for (const auto& step : steps_) text = step->apply(std::move(text), scratch);
    return text;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

class UnicodeNormalizer final : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalizationForm form) : form_(form) {}
  std::string apply(std::string text, RegexScratch&) const override { return normalize(text, form_); }

 private:
  NormalizationForm form_;
};

class ReplaceNormalizer final : public Normalizer {
 public:
  explicit ReplaceNormalizer(const ComponentJson& json)
      : regex_(parse_pattern(json)), content_(json.string("content")) {}

  std::string apply(std::string text, RegexScratch& scratch) const override {
    return replace_matches(text, regex_, content_, scratch);
  }

 private:
  Regex regex_;
  std::string content_;
};

class PrependNormalizer final : public Normalizer {
 public:
  explicit PrependNormalizer(std::string_view prefix) : prefix_(prefix) {}
  std::string apply(std::string text, RegexScratch&) const override { return text.empty() ? text : prefix_ + text; }

 private:
  std::string prefix_;
};

class LowercaseNormalizer final : public Normalizer {
 public:
  std::string apply(std::string text, RegexScratch&) const override { return lower_case(text); }
};

class StripNormalizer final : public Normalizer {
 public:
  explicit StripNormalizer(const ComponentJson& json)
      : strip_left_(json.boolean("strip_left")), strip_right_(json.boolean("strip_right")) {}

  std::string apply(std::string text, RegexScratch&) const override {
    const std::size_t begin = strip_left_ ? skip_white_space(text, 0) : 0;
    const std::size_t end = strip_right_ ? skip_white_space_back(text, begin, text.size()) : text.size();
    return text.substr(begin, end - begin);
  }

 private:
  bool strip_left_;
  bool strip_right_;
};

std::unique_ptr<Normalizer> parse_sequence(const ComponentJson& json) {
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (const auto element : json.array("normalizers")) {
    steps.push_back(parse_normalizer({element, fmt::format("{}[{}]", json.place(), steps.size())}));
  }
  return std::make_unique<SequenceNormalizer>(std::move(steps));
}

}  // namespace

std::unique_ptr<Normalizer> parse_normalizer(const ComponentJson& json) {
  const std::string_view type = json.type();
  if (type == "Sequence") return parse_sequence(json);
  if (type == "NFC") return std::make_unique<UnicodeNormalizer>(NormalizationForm::Nfc);
  if (type == "NFD") return std::make_unique<UnicodeNormalizer>(NormalizationForm::Nfd);
  if (type == "NFKC") return std::make_unique<UnicodeNormalizer>(NormalizationForm::Nfkc);
  if (type == "NFKD") return std::make_unique<UnicodeNormalizer>(NormalizationForm::Nfkd);
  if (type == "Replace") return std::make_unique<ReplaceNormalizer>(json);
  if (type == "Prepend") return std::make_unique<PrependNormalizer>(json.string("prepend"));
  if (type == "Lowercase") return std::make_unique<LowercaseNormalizer>();
  if (type == "Strip") return std::make_unique<StripNormalizer>(json);
  json.fail_unknown_type("Sequence, NFC, NFD, NFKC, NFKD, Replace, Prepend, Lowercase and Strip");
}

Regex parse_pattern(const ComponentJson& json) {
  const ComponentJson pattern = json.object("pattern");
  return pattern.find("Regex") ? Regex(pattern.string("Regex")) : Regex::literal(pattern.string("String"));
}

std::string replace_matches(std::string_view text, const Regex& regex, std::string_view content,
                            RegexScratch& scratch) {
  std::string replaced;
  replaced.reserve(text.size());
  std::size_t copied = 0;
  regex.for_each_match(text, scratch, [&](Regex::Match match) {
    replaced.append(text.substr(copied, match.begin - copied)).append(content);
    copied = match.end;
  });
  return replaced.append(text.substr(copied));
}

}  // namespace nibble::tokenizer
