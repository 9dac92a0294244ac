#include "tokenizer/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/log.h"
#include "tokenizer/unicode.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {

StringMatcher::StringMatcher() : roots_(256, kNone) {}

void StringMatcher::insert(std::string_view key, std::int32_t value) {
  const auto add_node = [&](char byte, std::int32_t next_sibling) {
    nodes_.push_back({kNone, kNone, next_sibling, byte});
    return static_cast<std::int32_t>(nodes_.size() - 1);
  };
  std::int32_t& root = roots_[static_cast<unsigned char>(key.front())];
  if (root == kNone) root = add_node(key.front(), kNone);
  std::int32_t node = root;
  for (const char byte : key.substr(1)) {
    std::int32_t next = child(node, byte);
    if (next == kNone) {
      next = add_node(byte, nodes_[static_cast<std::size_t>(node)].first_child);
      nodes_[static_cast<std::size_t>(node)].first_child = next;
    }
    node = next;
  }
  Node& last = nodes_[static_cast<std::size_t>(node)];
  if (last.value == kNone) last.value = value;
}

std::int32_t StringMatcher::child(std::int32_t node, char byte) const {
  std::int32_t next = nodes_[static_cast<std::size_t>(node)].first_child;
  while (next != kNone && nodes_[static_cast<std::size_t>(next)].byte != byte) {
    next = nodes_[static_cast<std::size_t>(next)].next_sibling;
  }
  return next;
}

std::optional<StringMatcher::Match> StringMatcher::find(std::string_view text, std::size_t from) const {
  if (nodes_.empty()) return std::nullopt;
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    std::int32_t node = roots_[static_cast<unsigned char>(text[begin])];
    std::optional<Match> longest;
    for (std::size_t end = begin + 1; node != kNone; ++end) {
      const std::int32_t value = nodes_[static_cast<std::size_t>(node)].value;
      if (value != kNone) longest = {begin, end, value};
      if (end == text.size()) break;
      node = child(node, text[end]);
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

AddedTokens::AddedTokens(simdjson::dom::array entries, const Vocabulary& vocabulary, const Normalizer* normalizer) {
  RegexScratch scratch;
  auto next_id = static_cast<std::int64_t>(vocabulary.num_tokens());
  std::size_t i = 0;
  for (const auto element : entries) {
    const ComponentJson json(element, fmt::format("added_tokens[{}]", i++));
    AddedToken token;
    token.content = json.string("content");
    if (token.content.empty()) continue;
    token.single_word = json.boolean("single_word");
    token.lstrip = json.boolean("lstrip");
    token.rstrip = json.boolean("rstrip");
    token.normalized = json.boolean("normalized");
    token.special = json.boolean("special");

    const AddedToken* known = find(token.content);
    const auto in_vocabulary = known != nullptr ? std::optional(known->id) : vocabulary.find(token.content);
    const std::int64_t id = in_vocabulary ? *in_vocabulary : next_id++;
    if (id > Vocabulary::kMaxId) json.fail(ErrorCode::Corrupt, fmt::format("has no id below {}", Vocabulary::kMaxId));
    token.id = static_cast<std::int32_t>(id);
    if (json.integer("id") != id) {
      log::warning(
          "tokenizer.json: added token \"{}\" is written with id {} but gets {}, as in Hugging Face tokenizers",
          token.content, json.integer("id"), id);
    }
    token.normalized_content = token.content;
    if (token.normalized && normalizer != nullptr) {
      scratch.begin(token.content.size());
      token.normalized_content = normalizer->apply(token.content, scratch);
    }
    add(std::move(token));
  }
  for (const AddedToken& token : tokens_) {
    if (find(token.id) != &token) continue;  // replaced by a later entry
    const std::int32_t index = by_id_[static_cast<std::size_t>(token.id)];
    if (!token.normalized) {
      as_given_.insert(token.content, index);
    } else if (!token.normalized_content.empty()) {
      normalized_.insert(token.normalized_content, index);
    }
  }
}

void AddedTokens::add(AddedToken token) {
  const auto index = static_cast<std::size_t>(token.id);
  if (index >= by_id_.size()) by_id_.resize(index + 1, -1);
  // A token that was special once stays so.
  if (const AddedToken* replaced = find(token.id)) token.special = token.special || replaced->special;
  by_id_[index] = static_cast<std::int32_t>(tokens_.size());
  by_content_.insert(token.content, token.id);
  tokens_.push_back(std::move(token));
}

std::optional<AddedTokens::Span> AddedTokens::token_span(std::string_view text, const AddedToken& token,
                                                         StringMatcher::Match match, std::size_t visited_end,
                                                         SpecialTokens special) const {
  if (special == SpecialTokens::AsText && token.special) return std::nullopt;
  if (token.single_word) {
    const bool follows_word = match.begin > 0 && is_word_character(decode_utf8_before(text, match.begin).value);
    const bool precedes_word = match.end < text.size() && is_word_character(decode_utf8(text, match.end).value);
    if (follows_word || precedes_word) return std::nullopt;
  }
  Span span{match.begin, match.end};
  if (token.lstrip) {
    span.begin = std::max(visited_end, skip_white_space_back(text, std::min(visited_end, span.begin), span.begin));
  }
  if (token.rstrip) span.end = skip_white_space(text, span.end);
  return span;
}

const AddedToken* AddedTokens::find(std::int32_t id) const {
  if (id < 0 || id >= id_end() || by_id_[static_cast<std::size_t>(id)] < 0) return nullptr;
  return &tokens_[static_cast<std::size_t>(by_id_[static_cast<std::size_t>(id)])];
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto id = by_content_.find(content);
  return id ? find(*id) : nullptr;
}

}  // namespace nibble::tokenizer
