#include "tokenizer/pre_tokenizer.h"

#include <fmt/format.h>

#include <string>

#include "tokenizer/byte_level.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/split_behavior.h"
#include "tokenizer/unicode.h"
#include "tokenizer/utf8.h"

namespace nibble::tokenizer {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Matches : std::uint8_t { Delimiters, Pieces };  // "invert": the pattern describes what stays

void split_by_regex(Piece piece, const Regex& regex, SplitBehavior behavior, Matches matches, RegexScratch& scratch,
                    PieceSink& sink) {
  SplitEmitter emitter(piece, behavior, sink);
  const bool is_delimiter = matches == Matches::Delimiters;
  std::size_t end = 0;
  regex.for_each_match(piece.text, scratch, [&](Regex::Match match) {
    if (end != match.begin) emitter.span(end, match.begin, !is_delimiter);
    emitter.span(match.begin, match.end, is_delimiter);
    end = match.end;
  });
  if (end != piece.text.size()) emitter.span(end, piece.text.size(), !is_delimiter);
  emitter.finish();
}

template <class IsDelimiter>
void split_by_character(Piece piece, const IsDelimiter& is_delimiter, SplitBehavior behavior, PieceSink& sink) {
  SplitEmitter emitter(piece, behavior, sink);
  std::size_t end = 0;
  for (std::size_t at = 0; at < piece.text.size();) {
    const CodePoint code_point = decode_utf8(piece.text, at);
    const std::size_t next = at + code_point.size_bytes;
    if (is_delimiter(code_point.value)) {
      if (end != at) emitter.span(end, at, false);
      emitter.span(at, next, true);
      end = next;
    }
    at = next;
  }
  if (end != piece.text.size()) emitter.span(end, piece.text.size(), false);
  emitter.finish();
}

class Split final : public PreTokenizer {
 public:
  explicit Split(const ComponentJson& json)
      : regex_(parse_pattern(json)),
        behavior_(parse_split_behavior(json)),
        matches_(json.boolean("invert") ? Matches::Pieces : Matches::Delimiters) {}

  void split(Piece piece, RegexScratch& scratch, PieceSink& sink) const override {
    split_by_regex(piece, regex_, behavior_, matches_, scratch, sink);
  }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  Matches matches_;
};

/// `regex` may be absent ("use_regex": false). Pieces leave in `form`.
class ByteLevel final : public PreTokenizer {
 public:
  ByteLevel(const ComponentJson& json, PieceForm form)
      : add_prefix_space_(json.boolean("add_prefix_space")), form_(form) {
    if (json.boolean_or("use_regex", true)) regex_.emplace(kGpt2Pattern);
  }

  void split(Piece piece, RegexScratch& scratch, PieceSink& sink) const override {
    std::string with_space;
    if (add_prefix_space_ && !piece.text.starts_with(' ')) {
      with_space.append(" ").append(piece.text);
      piece.text = with_space;
    }
    AlphabetSink alphabet_sink(sink);
    PieceSink& next = form_ == PieceForm::Bytes ? sink : alphabet_sink;
    if (regex_) {
      split_by_regex(piece, *regex_, SplitBehavior::Isolated, Matches::Delimiters, scratch, next);
    } else {
      next.add(piece);
    }
  }

 private:
  class AlphabetSink final : public PieceSink {
   public:
    explicit AlphabetSink(PieceSink& next) : next_(next) {}
    void add(Piece piece) override {
      const std::string text = to_byte_level(piece.text);
      next_.add({text, piece.is_text_begin});
    }

   private:
    PieceSink& next_;
  };

  bool add_prefix_space_;
  PieceForm form_;
  std::optional<Regex> regex_;
};

class Digits final : public PreTokenizer {
 public:
  explicit Digits(const ComponentJson& json)
      : behavior_(json.boolean("individual_digits") ? SplitBehavior::Isolated : SplitBehavior::Contiguous) {}

  void split(Piece piece, RegexScratch&, PieceSink& sink) const override {
    split_by_character(piece, is_numeric, behavior_, sink);
  }

 private:
  SplitBehavior behavior_;
};

/// Spaces become `replacement` (▁), one is put in front, and each begins a piece.
class Metaspace final : public PreTokenizer {
 public:
  explicit Metaspace(const ComponentJson& json)
      : replacement_(json.character("replacement")), is_splitting_(json.boolean_or("split", true)) {
    append_utf8(replacement_utf8_, replacement_);
    const std::string_view scheme = json.find("prepend_scheme") ? json.string("prepend_scheme") : "always";
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      json.fail(ErrorCode::Corrupt, fmt::format("has an unknown prepend_scheme \"{}\"", scheme));
    }
    // Files from before prepend_scheme say add_prefix_space.
    const bool is_never = scheme == "never" || !json.boolean_or("add_prefix_space", true);
    prepend_ = is_never ? Prepend::Never : scheme == "first" ? Prepend::First : Prepend::Always;
  }

  void split(Piece piece, RegexScratch&, PieceSink& sink) const override {
    std::string text;
    text.reserve(piece.text.size() + piece.text.size() / 2);
    const bool is_marked = piece.text.starts_with(' ') || piece.text.starts_with(replacement_utf8_);
    const bool is_prepended = prepend_ == Prepend::Always || (prepend_ == Prepend::First && piece.is_text_begin);
    if (!is_marked && is_prepended) text += replacement_utf8_;
    for (const char c : piece.text) {
      if (c == ' ') {
        text += replacement_utf8_;
      } else {
        text += c;
      }
    }
    const Piece marked{text, piece.is_text_begin};
    if (!is_splitting_) return sink.add(marked);
    split_by_character(marked, [&](char32_t c) { return c == replacement_; }, SplitBehavior::MergedWithNext, sink);
  }

 private:
  enum class Prepend : std::uint8_t { Always, First, Never };

  char32_t replacement_;
  std::string replacement_utf8_;
  bool is_splitting_;
  Prepend prepend_;
};

/// Words and runs of other visible characters; white space goes.
class Whitespace final : public PreTokenizer {
 public:
  void split(Piece piece, RegexScratch& scratch, PieceSink& sink) const override {
    split_by_regex(piece, regex_, SplitBehavior::Removed, Matches::Pieces, scratch, sink);
  }

 private:
  // \w+|[^\w\s]+ in Rust's regex, whose \w has the joiners as well.
  Regex regex_{R"([\w\x{200c}\x{200d}]+|[^\w\s\x{200c}\x{200d}]+)"};
};

class WhitespaceSplit final : public PreTokenizer {
 public:
  void split(Piece piece, RegexScratch&, PieceSink& sink) const override {
    split_by_character(piece, is_white_space, SplitBehavior::Removed, sink);
  }
};

class Punctuation final : public PreTokenizer {
 public:
  explicit Punctuation(const ComponentJson& json)
      : behavior_(json.find("behavior") ? parse_split_behavior(json) : SplitBehavior::Isolated) {}

  void split(Piece piece, RegexScratch&, PieceSink& sink) const override {
    split_by_character(piece, is_punctuation, behavior_, sink);
  }

 private:
  SplitBehavior behavior_;
};

std::unique_ptr<PreTokenizer> parse_stage(const ComponentJson& json, PieceForm byte_level_form) {
  const std::string_view type = json.type();
  if (type == "Split") return std::make_unique<Split>(json);
  if (type == "ByteLevel") return std::make_unique<ByteLevel>(json, byte_level_form);
  if (type == "Digits") return std::make_unique<Digits>(json);
  if (type == "Metaspace") return std::make_unique<Metaspace>(json);
  if (type == "Whitespace") return std::make_unique<Whitespace>();
  if (type == "WhitespaceSplit") return std::make_unique<WhitespaceSplit>();
  if (type == "Punctuation") return std::make_unique<Punctuation>(json);
  json.fail_unknown_type("Sequence, Split, ByteLevel, Digits, Metaspace, Whitespace, WhitespaceSplit and Punctuation");
}

/// Sequences, which may hold sequences, as one list.
void flatten(const ComponentJson& json, std::vector<ComponentJson>& stages) {
  if (json.type() != "Sequence") {
    stages.push_back(json);
    return;
  }
  std::size_t i = 0;
  for (const auto element : json.array("pretokenizers")) {
    flatten({element, fmt::format("{}[{}]", json.place(), i++)}, stages);
  }
}

}  // namespace

/// Hands the pieces of one stage to the next.
class PreTokenizerChain::Stage final : public PieceSink {
 public:
  Stage(const PreTokenizerChain& chain, std::size_t next, RegexScratch& scratch, PieceSink& sink)
      : chain_(chain), next_(next), scratch_(scratch), sink_(sink) {}
  void add(Piece piece) override { chain_.split_from(next_, piece, scratch_, sink_); }

 private:
  const PreTokenizerChain& chain_;
  std::size_t next_;
  RegexScratch& scratch_;
  PieceSink& sink_;
};

PreTokenizerChain::PreTokenizerChain(const ComponentJson& json) {
  std::vector<ComponentJson> stages;
  flatten(json, stages);
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const bool is_last = i + 1 == stages.size();
    stages_.push_back(parse_stage(stages[i], is_last ? PieceForm::Bytes : PieceForm::Characters));
    if (is_last && stages[i].type() == "ByteLevel") form_ = PieceForm::Bytes;
  }
}

void PreTokenizerChain::split_from(std::size_t stage, Piece piece, RegexScratch& scratch, PieceSink& sink) const {
  if (stage == stages_.size()) return sink.add(piece);
  if (stage + 1 == stages_.size()) return stages_[stage]->split(piece, scratch, sink);
  Stage next(*this, stage + 1, scratch, sink);
  stages_[stage]->split(piece, scratch, next);
}

}  // namespace nibble::tokenizer
