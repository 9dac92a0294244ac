#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/file.h"
#include "models/loader.h"

namespace nibble::models {
namespace {

/// xorshift64*
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u | 1u) {}
  std::uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }

 private:
  std::uint64_t state_;
};

/// Random words that every tensor takes its bytes from, each from another place on and round and round: with numbers of
/// its own for every weight a 70B model would take minutes. A prime number of words, so that rows of no matrix repeat
/// in step with them: 16.8 MB.
class RandomWords {
 public:
  explicit RandomWords(std::uint64_t seed) : words_(2'097'143) {
    Random random(seed);
    std::ranges::generate(words_, [&] { return random.next(); });
  }

  /// Calls store(bytes of the tensor, as many random ones) for pieces of the tensor, in order.
  template <class Store>
  void for_each_piece(MutableTensorView tensor, Random& random, const Store& store) const {
    std::span<std::byte> rest(static_cast<std::byte*>(tensor.data()), tensor.size_bytes());
    const std::span<const std::byte> all = std::as_bytes(std::span(words_));
    std::size_t begin = random.next() % words_.size() * sizeof(std::uint64_t);
    while (!rest.empty()) {
      const std::size_t count = std::min(rest.size(), all.size() - begin);
      store(rest.first(count), all.subspan(begin, count));
      rest = rest.subspan(count);
      begin = 0;
    }
  }

  void fill(MutableTensorView tensor, Random& random) const {
    for_each_piece(tensor, random,
                   [](auto to, auto from) { std::memcpy(to.data(), from.data(), std::min(to.size(), from.size())); });
  }

  /// Every byte `keep`s these bits of its random one and has `set` besides; `Word` may be of several bytes.
  template <class Word>
  void fill_masked(MutableTensorView tensor, Random& random, Word keep, Word set) const {
    for_each_piece(tensor, random, [=](auto to, auto from) {
      auto* target = reinterpret_cast<Word*>(to.data());
      const auto* source = reinterpret_cast<const Word*>(from.data());
      for (std::size_t i = 0; i < to.size() / sizeof(Word); ++i)
        target[i] = static_cast<Word>((source[i] & keep) | set);
    });
  }

 private:
  std::vector<std::uint64_t> words_;
};

/// Random sign and mantissa, exponent fixed: magnitudes uniform in [2^-6, 2^-5), about what trained layers have.
Tensor random_half(Shape shape, const RandomWords& words, Random& random) {
  Tensor tensor = Tensor::empty(DType::F16, shape);
  words.fill_masked<std::uint16_t>(tensor.mutable_view(), random, 0x83ffu, 9u << 10);
  return tensor;
}

/// The same magnitudes as random_half's: E4M3 codes of 1 … 2 with a scale of 2^-6 a row.
weights::Fp8Weights random_fp8(const Shape& shape, const RandomWords& words, Random& random) {
  weights::Fp8Weights w;
  w.weight = Tensor::empty(DType::F8E4M3, shape);
  words.fill_masked<std::uint8_t>(w.weight.mutable_view(), random, 0x87u, 0x38u);
  w.scale = Tensor::empty(DType::F32, {shape[0]});
  for (float& scale : w.scale.span<float>()) scale = 0x1p-6f;
  return w;
}

Tensor constant_half(Shape shape, float value) {
  Tensor tensor = Tensor::empty(DType::F16, shape);
  for (Half& half : tensor.span<Half>()) half = to_half(value);
  return tensor;
}

/// Any codes, tables of random_half's magnitudes, and sparse values at random columns for the share `sparsity`.
weights::CodebookWeights random_codebook(const Shape& shape, std::int32_t bits, double sparsity,
                                         const RandomWords& words, Random& random) {
  weights::CodebookWeights w;
  w.out_features = shape[0];
  w.in_features = shape[1];
  w.bits = bits;
  w.codes = Tensor::empty(DType::U8, {shape[0], weights::packed_row_bytes(shape[1], bits)});
  words.fill(w.codes.mutable_view(), random);
  w.lookup_table = random_half({shape[0], std::int64_t{1} << bits}, words, random);
  const auto per_row = static_cast<std::int32_t>(sparsity * static_cast<double>(shape[1]));
  if (per_row == 0) return w;
  w.rows = Tensor::empty(DType::I32, {shape[0] + 1});
  std::int32_t begin = 0;
  for (std::int32_t& row : w.rows.span<std::int32_t>()) row = std::exchange(begin, begin + per_row);
  w.cols = Tensor::empty(DType::I32, {shape[0] * per_row});
  for (std::int32_t& col : w.cols.span<std::int32_t>()) {
    col = static_cast<std::int32_t>(random.next() % static_cast<std::uint64_t>(shape[1]));
  }
  w.vals = to_dtype(random_half({shape[0] * per_row}, words, random), DType::F32);
  return w;
}

/// Byte-level tokenizer without merges: id = byte, so that any text encodes. The ids above are words, so that whatever
/// a model of random weights says is text, token by token.
std::string byte_level_tokenizer_json(std::int64_t vocab_size) {
  Json vocabulary = Json::object();
  int next_unprintable = 256;
  for (int byte = 0; byte < 256; ++byte) {
    // GPT-2's printable stand-ins for bytes.
    const bool is_printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code_point = is_printable ? byte : next_unprintable++;
    std::string token;
    if (code_point < 0x80) {
      token += static_cast<char>(code_point);
    } else {
      token += static_cast<char>(0xc0 | (code_point >> 6));
      token += static_cast<char>(0x80 | (code_point & 0x3f));
    }
    vocabulary[token] = byte;
  }
  // U+0120 stands for a space.
  for (std::int64_t id = 256; id < vocab_size; ++id) vocabulary["\xc4\xa0w" + std::to_string(id)] = id;
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return Json{{"version", "1.0"},
              {"truncation", nullptr},
              {"padding", nullptr},
              {"added_tokens", Json::array()},
              {"normalizer", nullptr},
              {"pre_tokenizer", byte_level},
              {"post_processor", nullptr},
              {"decoder", byte_level},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"vocab", vocabulary},
                {"merges", Json::array()}}}}
      .dump();
}

class DummyCheckpoint final : public formats::Checkpoint {
 public:
  DummyCheckpoint(std::filesystem::path folder, std::uint64_t seed)
      : folder_(std::move(folder)), seed_(seed), words_(seed), config_(read_json_file(folder_ / "config.json")) {
    model_ = parse_model_config(config_);
    if (const auto found = config_.find("quantization_config"); found != config_.end() && found->is_object()) {
      quantization_ = parse_quantization(*found);
    }
  }

  const std::filesystem::path& path() const override { return folder_; }
  const Json& config() const override { return config_; }
  const std::optional<formats::QuantizationConfig>& quantization() const override { return quantization_; }

  std::optional<std::string> side_file(std::string_view name) const override {
    if (std::filesystem::exists(folder_ / name)) return read_text_file(folder_ / name);
    if (name == "tokenizer.json") return byte_level_tokenizer_json(model_.vocab_size);
    return std::nullopt;
  }

  std::vector<std::string> tensor_names() const override { return {}; }
  bool contains(std::string_view tensor) const override {
    return !(model_.tie_word_embeddings && tensor.starts_with("lm_head"));
  }

  TensorView tensor(std::string_view name) const override {
    const std::scoped_lock lock(mutex_);
    const auto found = tensors_.find(name);
    if (found != tensors_.end()) return found->second.view();
    Random random(seed_ ^ std::hash<std::string_view>{}(name));
    const bool is_table = name == "model.embed_tokens.weight" || name == "lm_head.weight";
    return tensors_
        .emplace(name, is_table ? random_half({model_.vocab_size, model_.hidden_size}, words_, random)
                                : constant_half({model_.hidden_size}, 1.0f))
        .first->second.view();
  }

  weights::LinearWeights linear(std::string_view module, const Shape& shape) const override {
    Random random(seed_ ^ std::hash<std::string_view>{}(module));
    if (!quantization_ || module == "lm_head") return weights::DenseWeights{random_half(shape, words_, random)};
    if (quantization_->method == "squeezellm") {
      return random_codebook(shape, quantization_->bits, get_or(quantization_->raw, "sparsity", 0.0), words_, random);
    }
    if (quantization_->method == "fp8") return random_fp8(shape, words_, random);
    weights::GroupedIntWeights w;
    w.out_features = shape[0];
    w.in_features = shape[1];
    w.bits = quantization_->bits;
    w.group_size = quantization_->group_size > 0 ? quantization_->group_size : shape[1];
    if (shape[1] % w.group_size != 0) {
      throw Error(ErrorCode::InvalidArgument, std::string(module) + ": group_size " + std::to_string(w.group_size) +
                                                  " does not divide " + std::to_string(shape[1]) + " inputs");
    }
    w.codes = Tensor::empty(DType::U8, {shape[0], weights::packed_row_bytes(shape[1], w.bits)});
    words_.fill(w.codes.mutable_view(), random);
    // Uniform codes of range 2^bits around the middle: the scale gives weights the spread of random_half's.
    w.scales = constant_half({shape[0], shape[1] / w.group_size}, 0.0625f / static_cast<float>(1 << w.bits));
    w.zeros = Tensor::empty(DType::I16, {shape[0], shape[1] / w.group_size});
    // Either side of the codes' mean in turn: a bias that all weights share grows beyond f16 within a few layers.
    std::int16_t zero = static_cast<std::int16_t>(1 << (w.bits - 1));
    for (std::int16_t& to : w.zeros.span<std::int16_t>()) {
      to = zero;
      zero = static_cast<std::int16_t>((1 << w.bits) - 1 - zero);
    }
    return w;
  }

  Tensor bias(std::string_view, std::int64_t) const override { return {}; }
  void drop_pages(std::string_view) const override {}
  void release(std::string_view) const override {}
  std::int64_t size_bytes() const override { return 0; }

 private:
  static formats::QuantizationConfig parse_quantization(const Json& json) {
    formats::QuantizationConfig quantization;
    quantization.method = get<std::string>(json, "quant_method");
    constexpr std::string_view kMade[] = {"gptq", "awq", "fp8", "squeezellm"};
    if (std::ranges::find(kMade, quantization.method) == std::end(kMade)) {
      throw Error(ErrorCode::Unsupported, "quantization_config: quant_method \"" + quantization.method +
                                              "\"; --load-format dummy makes gptq, awq, fp8 and squeezellm weights");
    }
    quantization.bits =
        static_cast<std::int32_t>(get_or<std::int64_t>(json, "bits", get_or<std::int64_t>(json, "wbits", 4)));
    if (quantization.method == "squeezellm" && quantization.bits != 3 && quantization.bits != 4) {
      throw Error(ErrorCode::Unsupported,
                  "quantization_config: SqueezeLLM has 3 and 4 bits, not " + std::to_string(quantization.bits));
    }
    quantization.group_size = get_or<std::int64_t>(json, "group_size", 128);
    quantization.raw = json;
    return quantization;
  }

  std::filesystem::path folder_;
  std::uint64_t seed_;
  RandomWords words_;
  Json config_;
  ModelConfig model_;
  std::optional<formats::QuantizationConfig> quantization_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, Tensor, std::less<>> tensors_;  // made on first use, kept: views borrow them
};

}  // namespace

std::unique_ptr<formats::Checkpoint> make_dummy_checkpoint(const std::filesystem::path& folder, std::uint64_t seed) {
  return std::make_unique<DummyCheckpoint>(folder, seed);
}

}  // namespace nibble::models
