#include "tokenizer/post_processor.h"

#include <fmt/format.h>

#include "tokenizer/vocabulary.h"

namespace nibble::tokenizer {
namespace {

std::int32_t checked_id(const ComponentJson& json, simdjson::dom::element element) {
  std::int64_t id = 0;
  if (element.get(id) != simdjson::SUCCESS || id < 0 || id > Vocabulary::kMaxId) {
    json.fail(ErrorCode::Corrupt, "holds something else than a token id");
  }
  return static_cast<std::int32_t>(id);
}

void append_special_token(const ComponentJson& json, std::string_view name, std::vector<std::int32_t>& tokens) {
  for (const auto element : json.object("special_tokens").object(name).array("ids")) {
    tokens.push_back(checked_id(json, element));
  }
}

/// {"single": [{"SpecialToken": {"id": "<s>", …}}, {"Sequence": {"id": "A", …}}], "special_tokens": …}. "pair" is for
/// two texts, which no causal model gets.
PostProcessor parse_template(const ComponentJson& json) {
  PostProcessor processor;
  bool has_sequence = false;
  for (const auto element : json.array("single")) {
    const ComponentJson piece(element, json.place() + ".single");
    if (piece.find("SpecialToken")) {
      append_special_token(json, piece.object("SpecialToken").string("id"),
                           has_sequence ? processor.suffix : processor.prefix);
    } else if (piece.object("Sequence").string("id") == "A" && !has_sequence) {
      has_sequence = true;
    } else {
      piece.fail(ErrorCode::Unsupported, "holds the text twice or another text; nibble reads it once");
    }
  }
  if (!has_sequence) json.fail(ErrorCode::Unsupported, "has a template \"single\" without the text");
  return processor;
}

/// "cls": ["<s>", 0].
std::int32_t read_token_pair(const ComponentJson& json, std::string_view key) {
  const simdjson::dom::array pair = json.array(key);
  simdjson::dom::element id;
  if (pair.size() != 2 || pair.at(1).get(id) != simdjson::SUCCESS) {
    json.fail(ErrorCode::Corrupt, fmt::format("\"{}\" is not [token, id]", key));
  }
  return checked_id(json, id);
}

PostProcessor parse_sequence(const ComponentJson& json) {
  PostProcessor processor;
  std::size_t i = 0;
  for (const auto element : json.array("processors")) {
    const ComponentJson step_json(element, fmt::format("{}[{}]", json.place(), i++));
    PostProcessor step = parse_post_processor(step_json);
    if (step.prefix.empty() && step.suffix.empty()) continue;
    if (!processor.prefix.empty() || !processor.suffix.empty()) {
      step_json.fail(ErrorCode::Unsupported, "is the second of a Sequence to add tokens");
    }
    processor = std::move(step);
  }
  return processor;
}

}  // namespace

PostProcessor parse_post_processor(const ComponentJson& json) {
  const std::string_view type = json.type();
  if (type == "Sequence") return parse_sequence(json);
  if (type == "ByteLevel") return {};
  if (type == "TemplateProcessing") return parse_template(json);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    return {{read_token_pair(json, "cls")}, {read_token_pair(json, "sep")}};
  }
  json.fail_unknown_type("Sequence, ByteLevel, TemplateProcessing, BertProcessing and RobertaProcessing");
}

}  // namespace nibble::tokenizer
