#include "tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string>

#include "tokenizer/byte_level.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {
namespace {

void refuse_option(const ComponentJson& json, std::string_view key) {
  if (json.find(key) && !json.string(key).empty()) {
    json.fail(ErrorCode::Unsupported, fmt::format("sets {}, which nibble does not implement", key));
  }
}

void refuse_dropout(const ComponentJson& json) {
  const auto dropout = json.find("dropout");
  double probability = 0;
  if (!dropout) return;
  if (dropout->get(probability) != simdjson::SUCCESS) json.fail(ErrorCode::Corrupt, "\"dropout\" is not a number");
  if (probability != 0) {
    json.fail(ErrorCode::Unsupported, "sets dropout, which is for training: set it to null to use this tokenizer");
  }
}

struct MergePair {
  std::string_view left;
  std::string_view right;
};

/// "left right", or ["left", "right"], which tokens with spaces need.
MergePair read_merge(const ComponentJson& json, simdjson::dom::element element, std::size_t rank) {
  std::string_view text;
  if (element.get(text) == simdjson::SUCCESS) {
    const std::size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  }
  simdjson::dom::array pair;
  MergePair merge;
  if (element.get(pair) == simdjson::SUCCESS && pair.size() == 2 && pair.at(0).get(merge.left) == simdjson::SUCCESS &&
      pair.at(1).get(merge.right) == simdjson::SUCCESS) {
    return merge;
  }
  json.fail(ErrorCode::Corrupt, fmt::format("merge {} is neither \"left right\" nor [left, right]", rank));
}

}  // namespace

/// Appends the symbols of a piece, with what becomes of characters that are no tokens.
class Bpe::SymbolWriter {
 public:
  SymbolWriter(const Bpe& bpe, std::vector<std::int32_t>& symbols) : bpe_(bpe), symbols_(symbols) {}

  void add(std::int32_t token) {
    flush_unknown();
    symbols_.push_back(token);
  }

  /// `character`: one character of UTF-8, in the vocabulary's spelling. Without byte tokens and <unk> it is lost.
  void add_unknown(std::string_view character) {
    if (bpe_.byte_fallback_ && add_bytes(character)) return;
    if (bpe_.unk_token_.empty()) return;
    if (!bpe_.unk_id_) {
      throw Error(ErrorCode::Corrupt, fmt::format("tokenizer.json: model.vocab has neither \"{}\" nor unk_token \"{}\"",
                                                  character, bpe_.unk_token_));
    }
    if (!bpe_.fuse_unk_) flush_unknown();
    waiting_unknown_ = bpe_.unk_id_;
  }

  void flush_unknown() {
    if (waiting_unknown_) symbols_.push_back(*waiting_unknown_);
    waiting_unknown_.reset();
  }

 private:
  // A waiting <unk> stays behind bytes that come after it, as in `tokenizers`.
  bool add_bytes(std::string_view character) {
    const auto token = [&](char c) { return bpe_.fallback_bytes_[static_cast<unsigned char>(c)]; };
    if (!std::all_of(character.begin(), character.end(), [&](char c) { return token(c) != kNoToken; })) return false;
    for (const char c : character) symbols_.push_back(token(c));
    return true;
  }

  const Bpe& bpe_;
  std::vector<std::int32_t>& symbols_;
  std::optional<std::int32_t> waiting_unknown_;
};

Bpe::Bpe(const ComponentJson& json, PieceForm form) : form_(form) {
  if (json.find("type") && json.type() != "BPE") json.fail_unknown_type("BPE");
  refuse_dropout(json);
  refuse_option(json, "continuing_subword_prefix");
  refuse_option(json, "end_of_word_suffix");
  ignore_merges_ = json.boolean_or("ignore_merges", false);
  fuse_unk_ = json.boolean_or("fuse_unk", false);
  byte_fallback_ = json.boolean_or("byte_fallback", false);
  read_vocabulary(json);
  read_merges(json);
  if (json.find("unk_token")) {
    unk_token_ = json.string("unk_token");
    unk_id_ = vocabulary_.find(unk_token_);
  }
  index_bytes();
}

void Bpe::read_vocabulary(const ComponentJson& json) {
  const auto element = json.find("vocab");
  simdjson::dom::object vocab;
  if (!element || element->get(vocab) != simdjson::SUCCESS) json.fail(ErrorCode::Corrupt, "has no object \"vocab\"");
  for (const auto field : vocab) {
    std::int64_t id = 0;
    if (field.value.get(id) != simdjson::SUCCESS) {
      json.fail(ErrorCode::Corrupt, fmt::format("vocab: the id of \"{}\" is not an integer", field.key));
    }
    vocabulary_.insert(field.key, id);
  }
}

void Bpe::read_merges(const ComponentJson& json) {
  std::vector<simdjson::dom::element> lines;
  for (const auto element : json.array("merges")) {
    std::string_view text;
    const bool is_header = element.get(text) == simdjson::SUCCESS && text.starts_with("#version");
    if (!is_header) lines.push_back(element);
  }
  merges_ = MergeTable(lines.size());
  std::string merged;
  for (std::size_t rank = 0; rank < lines.size(); ++rank) {
    const auto [left, right] = read_merge(json, lines[rank], rank);
    const auto find = [&](std::string_view token) {
      const auto id = vocabulary_.find(token);
      if (!id) {
        json.fail(ErrorCode::Corrupt, fmt::format("merge {} (\"{}\" \"{}\") needs token \"{}\", which is not in vocab",
                                                  rank, left, right, token));
      }
      return *id;
    };
    const std::int32_t left_id = find(left);
    const std::int32_t right_id = find(right);
    merged.assign(left).append(right);
    merges_.insert(left_id, right_id, {static_cast<std::uint32_t>(rank), find(merged)});
  }
}

void Bpe::index_bytes() {
  for (std::size_t byte = 0; byte < 256; ++byte) {
    fallback_bytes_[byte] = vocabulary_.find(fmt::format("<0x{:02X}>", byte)).value_or(kNoToken);
    std::string character;
    append_utf8(character, byte_level_character(static_cast<std::uint8_t>(byte)));
    bytes_[byte] = vocabulary_.find(character).value_or(kNoToken);
  }
  if (form_ != PieceForm::Bytes || !ignore_merges_) return;
  for (std::int32_t id = 0; id < vocabulary_.id_end(); ++id) {
    const auto token = vocabulary_.token(id);
    if (!token) continue;
    if (const auto bytes = from_byte_level(*token)) pieces_.insert(*bytes, vocabulary_.find(*token).value_or(id));
  }
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<std::int32_t>& tokens) const {
  if (piece.empty()) return;
  const bool is_cached = piece.size() <= WordCache::kMaxWordBytes;
  const WordCache::Key key = is_cached ? WordCache::key(piece) : WordCache::Key{};
  if (is_cached && scratch.cache.append(key, tokens)) return;

  // A character becomes at most its four bytes: no more symbols than bytes in either form.
  if (piece.size() > WordMerger::kMaxSymbols) {
    throw Error(ErrorCode::InvalidArgument, "the text is too long to be tokenized: over 512 MiB without a break");
  }
  const std::size_t begin = tokens.size();
  if (const auto token = whole_piece(piece)) {
    tokens.push_back(*token);
  } else {
    append_symbols(piece, tokens);
    tokens.resize(begin + scratch.merger.merge(merges_, std::span(tokens).subspan(begin)));
  }
  if (is_cached) scratch.cache.insert(key, std::span(tokens).subspan(begin));
}

std::optional<std::int32_t> Bpe::whole_piece(std::string_view piece) const {
  if (!ignore_merges_) return std::nullopt;
  return form_ == PieceForm::Bytes ? pieces_.find(piece) : vocabulary_.find(piece);
}

void Bpe::append_symbols(std::string_view piece, std::vector<std::int32_t>& symbols) const {
  const std::size_t max_size = symbols.size() + piece.size();
  if (max_size > symbols.capacity()) symbols.reserve(std::max(max_size, 2 * symbols.capacity()));
  SymbolWriter writer(*this, symbols);
  if (form_ == PieceForm::Bytes) {
    for (const char c : piece) {
      const std::int32_t token = bytes_[static_cast<unsigned char>(c)];
      if (token != kNoToken) {
        writer.add(token);
      } else {
        writer.add_unknown(to_byte_level(std::string_view(&c, 1)));
      }
    }
  } else {
    for (std::size_t at = 0; at < piece.size();) {
      const std::string_view character = piece.substr(at, decode_utf8(piece, at).size_bytes);
      at += character.size();
      if (const auto token = vocabulary_.find(character)) {
        writer.add(*token);
      } else {
        writer.add_unknown(character);
      }
    }
  }
  writer.flush_unknown();
}

}  // namespace nibble::tokenizer
