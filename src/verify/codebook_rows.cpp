#include "verify/codebook_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace nibble::verify {
namespace {

/// A row of few distinct values (all zeros, say) may well occur twice.
bool is_distinctive(std::span<const float> row) {
  return std::set<float>(row.begin(), row.end()).size() > row.size() / 2;
}

}  // namespace

std::vector<Finding> CodebookRows::add(const std::string& module, const weights::CodebookWeights& weights) {
  std::vector<Finding> findings;
  const auto index = static_cast<std::int32_t>(modules_.size());
  modules_.push_back(module);
  const Tensor table = to_dtype(weights.lookup_table, DType::F32);
  for (std::int64_t o = 0; o < weights.out_features; ++o) {
    const auto row = table.matrix<float>().row_span(o);
    if (!is_distinctive(row)) continue;
    std::string bytes(reinterpret_cast<const char*>(row.data()), row.size_bytes());
    const auto [place, is_new] = places_.try_emplace(std::move(bytes), Place{index, static_cast<std::int32_t>(o)});
    if (is_new || place->second.module == index) continue;
    findings.push_back({module + ".lookup_table",
                        fmt::format("row {} is row {} of {}.lookup_table: a table of another linear", o,
                                    place->second.row, modules_[static_cast<std::size_t>(place->second.module)])});
  }
  return findings;
}

}  // namespace nibble::verify
