#include "formats/awq.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "formats/fused_names.h"
#include "formats/transpose.h"

namespace nibble::formats {
namespace {

using weights::GroupedIntWeights;

constexpr std::int64_t kColumnsPerWord = 8;
/// Nibble i of a word holds column kOrder[i] of its block of eight.
constexpr std::array<std::int64_t, 8> kOrder{0, 2, 4, 6, 1, 3, 5, 7};

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return text;
}

/// Nibbles u8 [cols, rows] of words i32 [rows, cols/8], one byte each.
/// Sixteen words, a cache line, are read along a row before the next: their 128 target rows fit the L1 cache.
template <class Store>
void for_each_nibble(Matrix<const std::int32_t> words, Store&& store) {
  constexpr std::int64_t kTile = 16;
  for (std::int64_t c0 = 0; c0 < words.cols; c0 += kTile) {
    const std::int64_t c1 = std::min(c0 + kTile, words.cols);
    for (std::int64_t r = 0; r < words.rows; ++r) {
      for (std::int64_t c = c0; c < c1; ++c) {
        const auto word = static_cast<std::uint32_t>(words.row(r)[c]);
        for (std::size_t i = 0; i < kOrder.size(); ++i) {
          store(r, c * kColumnsPerWord + kOrder[i], static_cast<std::uint8_t>((word >> (4 * i)) & 15u));
        }
      }
    }
  }
}

/// Exchanges rows and columns of eight by eight nibbles: afterwards nibble j of words[i] is what nibble i of words[j]
/// was. Swaps the off-diagonal quarters of halves, of quarters, of eighths.
void transpose_nibbles(std::uint32_t (&words)[8]) {
  const auto exchange = [&](std::size_t distance, int shift, std::uint32_t mask) {
    for (std::size_t i = 0; i < 8; ++i) {
      if ((i & distance) != 0) continue;
      const std::uint32_t moved = ((words[i] >> shift) ^ words[i + distance]) & mask;
      words[i + distance] ^= moved;
      words[i] ^= moved << shift;
    }
  };
  exchange(4, 16, 0x0000ffffu);
  exchange(2, 8, 0x00ff00ffu);
  exchange(1, 4, 0x0f0f0f0fu);
}

/// Code streams [words.cols * 8, words.rows * 4 bits] of words i32 [inputs, outputs/8]. A tile is a cache line of words
/// of each of 128 inputs, and a cache line of each of 128 outputs; it is put together in memory of its own, because
/// rows of matrices whose width is a power of two share a few cache sets.
void transpose_codes(Matrix<const std::int32_t> words, Matrix<std::uint8_t> codes) {
  constexpr std::int64_t kWords = 16;
  std::uint32_t tile[kWords * kColumnsPerWord][kWords];
  for (std::int64_t c0 = 0; c0 < words.cols; c0 += kWords) {
    const std::int64_t tile_cols = std::min(kWords, words.cols - c0);
    for (std::int64_t r0 = 0; r0 < words.rows; r0 += kWords * kColumnsPerWord) {
      const std::int64_t rows = std::min(kWords * kColumnsPerWord, words.rows - r0);
      for (std::int64_t b = 0; b * kColumnsPerWord < rows; ++b) {
        const std::int64_t block_rows = std::min(kColumnsPerWord, rows - b * kColumnsPerWord);
        for (std::int64_t c = 0; c < tile_cols; ++c) {
          std::uint32_t block[8] = {};
          for (std::int64_t r = 0; r < block_rows; ++r) {
            block[r] = static_cast<std::uint32_t>(words.row(r0 + b * kColumnsPerWord + r)[c0 + c]);
          }
          transpose_nibbles(block);
          for (std::size_t i = 0; i < kOrder.size(); ++i) tile[c * kColumnsPerWord + kOrder[i]][b] = block[i];
        }
      }
      const std::int64_t row_bytes = (rows + kColumnsPerWord - 1) / kColumnsPerWord * 4;
      for (std::int64_t o = 0; o < tile_cols * kColumnsPerWord; ++o) {
        std::memcpy(codes.row(c0 * kColumnsPerWord + o) + r0 / 2, tile[o], static_cast<std::size_t>(row_bytes));
      }
    }
  }
}

/// words i32 [rows, cols/8] from nibbles load(row, column).
template <class Load>
Tensor pack_nibbles(std::int64_t rows, std::int64_t cols, Load&& load) {
  Tensor words = Tensor::empty(DType::I32, {rows, cols / kColumnsPerWord});
  const auto target = words.matrix<std::int32_t>();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < target.cols; ++c) {
      std::uint32_t word = 0;
      for (std::size_t i = 0; i < kOrder.size(); ++i) {
        word |= static_cast<std::uint32_t>(load(r, c * kColumnsPerWord + kOrder[i])) << (4 * i);
      }
      target.row(r)[c] = static_cast<std::int32_t>(word);
    }
  }
  return words;
}

void check_writable(const GroupedIntWeights& w) {
  const auto refuse = [](const std::string& reason) {
    throw Error(ErrorCode::Unsupported, "AWQ " + reason + "; write the gptq format, or leave the layer in f16");
  };
  if (w.bits != 4) refuse(fmt::format("holds 4 bits only, these weights have {}", w.bits));
  if (w.has_g_idx()) refuse("has no g_idx, so act-order weights do not fit");
  if (w.out_features % kColumnsPerWord != 0) {
    refuse(fmt::format("packs 8 outputs into a word, and {} outputs are not a multiple of 8", w.out_features));
  }
  if (w.in_features % w.group_size != 0 || w.first_group_offset != 0) {
    refuse(fmt::format("needs whole groups, and group_size {} does not divide {} inputs", w.group_size, w.in_features));
  }
  for (const std::int16_t zero : w.zeros.span<std::int16_t>()) {
    if (zero < 0 || zero > 15) refuse(fmt::format("holds zero points 0…15, found {}", zero));
  }
}

}  // namespace

QuantizationConfig parse_awq_config(const Json& raw) {
  QuantizationConfig config;
  const auto first_of = [&](const char* key, const char* old_key, std::int64_t fallback) {
    const auto value = get_optional<std::int64_t>(raw, key);
    return value ? *value : get_or<std::int64_t>(raw, old_key, fallback);
  };
  const std::int64_t bits = first_of("bits", "w_bit", 4);
  if (bits != 4) throw Error(ErrorCode::Unsupported, fmt::format("bits {} is not supported; AWQ is read with 4", bits));
  config.bits = 4;
  config.group_size = first_of("group_size", "q_group_size", 128);
  if (config.group_size != -1 && config.group_size <= 0) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("group_size {}: expected a positive number, or -1 for one group", config.group_size));
  }
  config.sym = !get_or(raw, "zero_point", true);
  config.checkpoint_format = lower(get_or<std::string>(raw, "version", "gemm"));
  if (config.checkpoint_format != "gemm") {
    throw Error(ErrorCode::Unsupported,
                fmt::format("AWQ version '{}' is not read; only 'gemm' is", config.checkpoint_format));
  }
  config.modules_to_not_convert = get_or<std::vector<std::string>>(raw, "modules_to_not_convert", {});
  return config;
}

/// Entries are substrings of names: one that stands in the name of a quantized module would unquantize it.
void expect_no_quantized_match(const QuantizationConfig& config) {
  for (const ModuleScheme& module : config.modules) {
    for (const std::string& kept : config.modules_to_not_convert) {
      if (module.module.find(kept) == std::string::npos) continue;
      throw Error(ErrorCode::Unsupported,
                  fmt::format("{}: is quantized, but readers would match it with '{}' of modules_to_not_convert",
                              module.module, kept));
    }
  }
}

Json make_awq_config(const QuantizationConfig& config) {
  for (const ModuleScheme& module : config.modules) {
    if (module.group_size == config.group_size) continue;
    throw Error(ErrorCode::Unsupported,
                fmt::format("{}: AWQ has one group_size for all modules, {}, and this one has {}", module.module,
                            config.group_size, module.group_size));
  }
  Json json{{"quant_method", "awq"},     {"bits", config.bits}, {"group_size", config.group_size},
            {"zero_point", !config.sym}, {"version", "gemm"},   {"modules_to_not_convert", nullptr}};
  if (!config.modules_to_not_convert.empty()) {
    json["modules_to_not_convert"] = with_fused_names(config.modules_to_not_convert);
    expect_no_quantized_match(config);
  }
  return json;
}

weights::LinearWeights read_awq(const ModuleTensors& tensors, const QuantizationConfig& config, const Shape& shape) {
  GroupedIntWeights w;
  w.out_features = shape[0];
  w.in_features = shape[1];
  w.bits = 4;
  w.group_size = config.group_size == -1 ? w.in_features : config.group_size;
  if (w.out_features % kColumnsPerWord != 0 || w.in_features % w.group_size != 0) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: AWQ of shape {} needs outputs in multiples of 8 and inputs in "
                                                "multiples of group_size {}",
                                                tensors.name("qweight"), shape.to_string(), w.group_size));
  }
  const std::int64_t num_words = w.out_features / kColumnsPerWord;
  const std::int64_t num_groups = w.in_features / w.group_size;
  if (tensors.get("qweight").shape() == Shape{w.in_features / 8, w.out_features}) {
    throw Error(ErrorCode::Corrupt,
                fmt::format("{}: the shape is GPTQ's layout, but the config says awq", tensors.name("qweight")));
  }
  const TensorView qweight = tensors.get("qweight", DType::I32, {w.in_features, num_words});
  const TensorView qzeros = tensors.get("qzeros", DType::I32, {num_groups, num_words});
  w.scales = transpose(tensors.get_float("scales", {num_groups, w.out_features}));

  w.codes = Tensor::empty(DType::U8, {w.out_features, weights::packed_row_bytes(w.in_features, w.bits)});
  transpose_codes(qweight.matrix<std::int32_t>(), w.codes.matrix<std::uint8_t>());
  w.zeros = Tensor::empty(DType::I16, {w.out_features, num_groups});
  const auto zeros = w.zeros.matrix<std::int16_t>();
  for_each_nibble(qzeros.matrix<std::int32_t>(), [&](std::int64_t group, std::int64_t output, std::uint8_t nibble) {
    zeros.row(output)[group] = nibble;
  });
  return w;
}

std::vector<NamedTensor> write_awq(const GroupedIntWeights& w) {
  check_writable(w);
  const auto codes = w.codes.matrix<std::uint8_t>();
  const auto zeros = w.zeros.matrix<std::int16_t>();
  std::vector<NamedTensor> tensors;
  tensors.push_back(
      {"qweight", pack_nibbles(w.in_features, w.out_features, [&](std::int64_t input, std::int64_t output) {
         return static_cast<std::uint8_t>((codes.row(output)[input / 2] >> (input % 2 * 4)) & 15);
       })});
  tensors.push_back(
      {"qzeros", pack_nibbles(w.num_groups(), w.out_features, [&](std::int64_t group, std::int64_t output) {
         return static_cast<std::uint8_t>(zeros.row(output)[group]);
       })});
  tensors.push_back({"scales", scales_to_write(w)});
  return tensors;
}

}  // namespace nibble::formats
