#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/tokenizer.h"

namespace nibble::tokenizer {

inline Json added_token(int id, const std::string& content, bool is_special = true) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", is_special}};
}

/// Byte-level BPE: ids 0 … 255 are the bytes, then "he", "ll", "hell", "hello", " w", the special <s> and </s>, and
/// <tool>, which is not special.
inline Json byte_level_json() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[to_byte_level(std::string(1, static_cast<char>(byte)))] = byte;
  const std::vector<std::pair<std::string, std::string>> merges = {
      {"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {"Ġ", "w"}};
  Json merge_lines = Json::array();
  for (const auto& [left, right] : merges) {
    vocab[left + right] = vocab.size();
    merge_lines.push_back(left + " " + right);
  }
  return {{"version", "1.0"},
          {"added_tokens", {added_token(261, "<s>"), added_token(262, "</s>"), added_token(263, "<tool>", false)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}}},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
            {"pair", Json::array()},
            {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {261}}, {"tokens", {"<s>"}}}}}}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_lines}}}};
}

/// SentencePiece-BPE as in Llama-2: <unk>, <s>, </s>, 256 byte tokens, then "▁", "h", "i", "▁h", "▁hi".
inline Json sentencepiece_json() {
  Json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) {
    const char* digits = "0123456789ABCDEF";
    vocab[std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">"] = 3 + byte;
  }
  for (const char* token : {"▁", "h", "i", "▁h", "▁hi"}) vocab[token] = vocab.size();
  return {{"added_tokens", {added_token(0, "<unk>"), added_token(1, "<s>"), added_token(2, "</s>")}},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             {{{"type", "Prepend"}, {"prepend", "▁"}},
              {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}}}},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "<unk>"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", Json::array({Json::array({"▁", "h"}), Json::array({"▁h", "i"})})}}}};
}

inline std::unique_ptr<Tokenizer> make_tokenizer(const Json& json, const Json& config = nullptr) {
  return Tokenizer::from_json(json.dump(), config);
}

}  // namespace nibble::tokenizer
