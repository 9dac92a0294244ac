#include "formats/gguf_tokenizer.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/error.h"

namespace nibble::formats {
namespace {

/// tokenizer.ggml.token_type
enum class TokenType : std::uint8_t { Normal = 1, Unknown = 2, Control = 3, UserDefined = 4, Unused = 5, Byte = 6 };

/// The published pre-tokenizer of a vocabulary: split regex, or the GPT-2 pattern that the ByteLevel step brings along.
struct PreTokenizer {
  std::string_view name;   // tokenizer.ggml.pre
  std::string_view regex;  // empty: ByteLevel's own
  bool single_digits;      // a step before it cuts digits one by one
  bool normalizes_nfc;
  bool ignores_merges;  // a pre-token that is in the vocabulary is taken whole
  bool adds_bos;        // where the file does not say
};

constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::array kPreTokenizers{
    PreTokenizer{"smollm", "", true, false, false, false},
    PreTokenizer{"llama-bpe", kLlama3Regex, false, false, true, true},
    PreTokenizer{"qwen2", kQwen2Regex, false, true, false, false},
    PreTokenizer{"gpt-2", "", false, false, false, false},
    PreTokenizer{"default", "", false, false, false, false},
};

Error corrupt(std::string message) {
  return {ErrorCode::Corrupt, std::move(message)};
}

/// A JSON string. Errors: Corrupt for text that is no UTF-8.
std::string quote(std::string_view text) {
  if (!simdjson::validate_utf8(text)) throw corrupt("tokenizer.ggml: a string is not valid UTF-8");
  return Json(text).dump();
}

/// The vocabulary as the file has it.
class Vocabulary {
 public:
  explicit Vocabulary(const GgufFile& file) : file_(file) {
    const GgufArray* tokens = file.array("tokenizer.ggml.tokens");
    if (tokens == nullptr || tokens->strings.empty()) throw corrupt("tokenizer.ggml.tokens: missing or empty");
    tokens_ = &tokens->strings;
    if (const GgufArray* types = file.array("tokenizer.ggml.token_type")) {
      if (types->numbers.size() != tokens_->size()) {
        throw corrupt(
            fmt::format("tokenizer.ggml.token_type: {} entries for {} tokens", types->numbers.size(), tokens_->size()));
      }
      types_ = &types->numbers;
    }
    ids_.reserve(tokens_->size());
    for (std::size_t id = 0; id < tokens_->size(); ++id) {
      if (!simdjson::validate_utf8((*tokens_)[id])) {
        throw corrupt(fmt::format("tokenizer.ggml.tokens: token {} is not valid UTF-8", id));
      }
      if (!ids_.emplace((*tokens_)[id], id).second) {
        throw corrupt(
            fmt::format("tokenizer.ggml.tokens: token {} ({}) stands there twice", id, quote((*tokens_)[id])));
      }
    }
  }

  const std::vector<std::string_view>& tokens() const { return *tokens_; }
  std::optional<std::size_t> id(std::string_view token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }
  TokenType type(std::size_t id) const {
    if (types_ == nullptr) return TokenType::Normal;
    const double number = (*types_)[id];
    return number >= 1 && number <= 6 ? static_cast<TokenType>(static_cast<int>(number)) : TokenType::Normal;
  }
  /// The token of an id that metadata names, such as tokenizer.ggml.bos_token_id.
  std::optional<std::string_view> named_token(std::string_view key) const {
    const auto id = file_.integer(key);
    if (!id) return std::nullopt;
    if (*id < 0 || static_cast<std::size_t>(*id) >= tokens_->size()) {
      throw corrupt(fmt::format("{}: {} is outside the vocabulary of {}", key, *id, tokens_->size()));
    }
    return (*tokens_)[static_cast<std::size_t>(*id)];
  }

 private:
  const GgufFile& file_;
  const std::vector<std::string_view>* tokens_ = nullptr;
  const std::vector<double>* types_ = nullptr;
  std::unordered_map<std::string_view, std::size_t> ids_;
};

using Merge = std::pair<std::string_view, std::string_view>;

std::vector<Merge> stored_merges(const GgufFile& file) {
  const GgufArray* stored = file.array("tokenizer.ggml.merges");
  if (stored == nullptr) throw corrupt("tokenizer.ggml.merges: missing");
  std::vector<Merge> merges;
  merges.reserve(stored->strings.size());
  for (const std::string_view merge : stored->strings) {
    const std::size_t space = merge.find(' ', 1);  // a token may begin with the separator itself
    if (space == std::string_view::npos)
      throw corrupt(fmt::format("tokenizer.ggml.merges: {} is no pair", quote(merge)));
    merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  return merges;
}

/// SentencePiece keeps scores, not merges: every way to make a token of two others, best score first.
std::vector<Merge> merges_from_scores(const GgufFile& file, const Vocabulary& vocabulary) {
  const GgufArray* scores = file.array("tokenizer.ggml.scores");
  const auto& tokens = vocabulary.tokens();
  if (scores == nullptr || scores->numbers.size() != tokens.size()) {
    throw corrupt("tokenizer.ggml.scores: expected one score a token");
  }
  std::vector<std::size_t> by_score;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    // Splitting is quadratic in the length; real pieces have at most 16 characters, SentencePiece's default.
    constexpr std::size_t kMaxTokenBytes = 512;
    if (vocabulary.type(id) == TokenType::Normal && tokens[id].size() <= kMaxTokenBytes) by_score.push_back(id);
  }
  std::stable_sort(by_score.begin(), by_score.end(),
                   [&](std::size_t a, std::size_t b) { return scores->numbers[a] > scores->numbers[b]; });
  std::vector<Merge> merges;
  for (const std::size_t id : by_score) {
    const std::string_view token = tokens[id];
    for (std::size_t length = token.size() - 1; length > 0 && length < token.size(); --length) {
      const Merge merge{token.substr(0, length), token.substr(length)};
      if (vocabulary.id(merge.first) && vocabulary.id(merge.second)) merges.push_back(merge);
    }
  }
  return merges;
}

std::string make_added_tokens(const Vocabulary& vocabulary) {
  std::string json = "[";
  for (std::size_t id = 0; id < vocabulary.tokens().size(); ++id) {
    const TokenType type = vocabulary.type(id);
    if (type != TokenType::Control && type != TokenType::UserDefined && type != TokenType::Unknown) continue;
    json += fmt::format(
        R"({}{{"id":{},"content":{},"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":{}}})",
        json.size() == 1 ? "" : ",", id, quote(vocabulary.tokens()[id]), type != TokenType::UserDefined);
  }
  return json + "]";
}

std::string make_vocab(const Vocabulary& vocabulary) {
  std::string json = "{";
  for (std::size_t id = 0; id < vocabulary.tokens().size(); ++id) {
    json += fmt::format("{}{}:{}", id == 0 ? "" : ",", quote(vocabulary.tokens()[id]), id);
  }
  return json + "}";
}

std::string make_merges(const std::vector<Merge>& merges) {
  // The plain form "a b" is read by every version of tokenizers, but cannot hold tokens with a space.
  const bool plain = std::ranges::none_of(merges, [](const Merge& merge) {
    return merge.first.find(' ') != std::string_view::npos || merge.second.find(' ') != std::string_view::npos;
  });
  std::string json = "[";
  for (const auto& [left, right] : merges) {
    if (json.size() > 1) json += ',';
    json += plain ? quote(fmt::format("{} {}", left, right)) : fmt::format("[{},{}]", quote(left), quote(right));
  }
  return json + "]";
}

/// BOS before and EOS behind a text, where the file wants them; else null.
Json make_post_processor(const GgufFile& file, const Vocabulary& vocabulary, bool adds_bos_by_default) {
  const auto bos = vocabulary.named_token("tokenizer.ggml.bos_token_id");
  const auto eos = vocabulary.named_token("tokenizer.ggml.eos_token_id");
  const bool add_bos = bos && file.boolean("tokenizer.ggml.add_bos_token").value_or(adds_bos_by_default);
  const bool add_eos = eos && file.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  if (!add_bos && !add_eos) return nullptr;
  Json single = Json::array();
  Json pair = Json::array();
  Json special = Json::object();
  const auto add_special = [&](std::string_view token) {
    single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    special[std::string(token)] = {
        {"id", token}, {"ids", Json::array({*vocabulary.id(token)})}, {"tokens", Json::array({token})}};
  };
  if (add_bos) add_special(*bos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (add_eos) add_special(*eos);
  for (Json piece : single) {  // the second text is built like the first
    pair.push_back(piece);
  }
  for (Json piece : single) {
    for (auto& [kind, fields] : piece.items()) {
      fields["type_id"] = 1;
      if (kind == "Sequence") fields["id"] = "B";
    }
    pair.push_back(std::move(piece));
  }
  return {{"type", "TemplateProcessing"},
          {"single", std::move(single)},
          {"pair", std::move(pair)},
          {"special_tokens", std::move(special)}};
}

Json make_byte_level(bool uses_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", uses_regex}};
}

Json make_pre_tokenizer(const PreTokenizer& row) {
  if (row.single_digits) {
    return {
        {"type", "Sequence"},
        {"pretokenizers", Json::array({Json{{"type", "Digits"}, {"individual_digits", true}}, make_byte_level(true)})}};
  }
  if (row.regex.empty()) return make_byte_level(true);
  return {
      {"type", "Sequence"},
      {"pretokenizers",
       Json::array(
           {Json{{"type", "Split"}, {"pattern", {{"Regex", row.regex}}}, {"behavior", "Isolated"}, {"invert", false}},
            make_byte_level(false)})}};
}

const PreTokenizer& find_pre_tokenizer(const GgufFile& file) {
  const std::string_view name = file.string("tokenizer.ggml.pre").value_or("default");
  std::string known;
  for (const PreTokenizer& row : kPreTokenizers) {
    if (row.name == name) return row;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", row.name);
  }
  throw Error(
      ErrorCode::Unsupported,
      fmt::format("tokenizer.ggml.pre '{}' is not known, and a guess would tokenize wrongly; known: {}", name, known));
}

/// What differs between the two kinds of vocabulary.
struct Pipeline {
  Json normalizer;
  Json pre_tokenizer;
  Json post_processor;
  Json decoder;
  Json model;  // without vocab and merges
  std::vector<Merge> merges;
};

Json make_bpe(const Json& unknown_token) {
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", unknown_token},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false}};
}

Pipeline make_byte_level_pipeline(const GgufFile& file, const Vocabulary& vocabulary) {
  const PreTokenizer& row = find_pre_tokenizer(file);
  Pipeline pipeline;
  if (row.normalizes_nfc) pipeline.normalizer = {{"type", "NFC"}};
  pipeline.pre_tokenizer = make_pre_tokenizer(row);
  pipeline.post_processor = make_post_processor(file, vocabulary, row.adds_bos);
  pipeline.decoder = make_byte_level(true);
  pipeline.model = make_bpe(nullptr);
  pipeline.model["ignore_merges"] = row.ignores_merges;
  pipeline.merges = stored_merges(file);
  return pipeline;
}

Pipeline make_sentence_piece_pipeline(const GgufFile& file, const Vocabulary& vocabulary) {
  constexpr std::string_view kSpace = "▁";
  const Json to_piece{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}};
  const Json to_space{{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}};
  const bool adds_prefix = file.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  Pipeline pipeline;
  Json steps = Json::array({to_space, Json{{"type", "ByteFallback"}}, Json{{"type", "Fuse"}}});
  pipeline.normalizer = to_piece;
  if (adds_prefix) {
    pipeline.normalizer = {{"type", "Sequence"},
                           {"normalizers", Json::array({Json{{"type", "Prepend"}, {"prepend", kSpace}}, to_piece})}};
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  pipeline.decoder = {{"type", "Sequence"}, {"decoders", std::move(steps)}};
  pipeline.post_processor = make_post_processor(file, vocabulary, true);
  const auto unknown = vocabulary.named_token("tokenizer.ggml.unknown_token_id");
  pipeline.model = make_bpe(unknown ? Json(*unknown) : Json("<unk>"));
  pipeline.model["fuse_unk"] = true;
  pipeline.model["byte_fallback"] = true;
  pipeline.merges = merges_from_scores(file, vocabulary);
  return pipeline;
}

Pipeline make_pipeline(const GgufFile& file, const Vocabulary& vocabulary) {
  const std::string_view model = file.string("tokenizer.ggml.model").value_or("");
  if (model == "gpt2") return make_byte_level_pipeline(file, vocabulary);
  if (model == "llama") return make_sentence_piece_pipeline(file, vocabulary);
  throw Error(ErrorCode::Unsupported,
              fmt::format("tokenizer.ggml.model '{}' is not imported; nibble knows gpt2 and llama", model));
}

}  // namespace

std::string make_tokenizer_json(const GgufFile& file) {
  const Vocabulary vocabulary(file);
  const Pipeline pipeline = make_pipeline(file, vocabulary);
  std::string model = pipeline.model.dump();
  model.pop_back();  // the closing brace: two long members follow
  return fmt::format(
      R"({{"version":"1.0","truncation":null,"padding":null,"added_tokens":{},"normalizer":{},"pre_tokenizer":{},)"
      R"("post_processor":{},"decoder":{},"model":{},"vocab":{},"merges":{}}}}})"
      "\n",
      make_added_tokens(vocabulary), pipeline.normalizer.dump(), pipeline.pre_tokenizer.dump(),
      pipeline.post_processor.dump(), pipeline.decoder.dump(), model, make_vocab(vocabulary),
      make_merges(pipeline.merges));
}

Json make_tokenizer_config(const GgufFile& file) {
  const Vocabulary vocabulary(file);
  Json config{{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  const std::array<std::pair<const char*, std::string_view>, 4> kNamed{
      {{"bos_token", "tokenizer.ggml.bos_token_id"},
       {"eos_token", "tokenizer.ggml.eos_token_id"},
       {"unk_token", "tokenizer.ggml.unknown_token_id"},
       {"pad_token", "tokenizer.ggml.padding_token_id"}}};
  for (const auto& [name, key] : kNamed) {
    if (const auto token = vocabulary.named_token(key)) config[name] = *token;
  }
  if (const auto chat_template = file.string("tokenizer.chat_template")) config["chat_template"] = *chat_template;
  return config;
}

}  // namespace nibble::formats
