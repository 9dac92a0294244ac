#include "quantize/loss_store.h"

#include <fmt/format.h>

#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/file.h"
#include "formats/safetensors.h"

namespace nibble::quantize {
namespace {

constexpr std::string_view kFisher = ".fisher";
constexpr std::string_view kGuidedGram = ".guided_gram";

void expect_same(const std::filesystem::path& file, const Json& stored, const Json& identity) {
  for (const auto& [key, value] : identity.items()) {
    if (stored.is_object() && stored.contains(key) && stored[key] == value) continue;
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("{}: these statistics were computed with another \"{}\"; give --statistics another folder",
                            file.string(), key));
  }
}

Tensor read_tensor(const formats::TensorFile& file, const std::string& name, std::int64_t rows, std::int64_t cols) {
  const auto entry = file.header().find(name);
  if (entry == file.header().end()) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: {} is missing", file.path().string(), name));
  }
  Tensor tensor = Tensor::empty(DType::F32, {rows, cols});
  const auto bytes = std::as_writable_bytes(tensor.span<float>());
  const formats::TensorEntry& found = entry->second;
  if (found.dtype != DType::F32 || found.sizes != std::vector{rows, cols}) {
    throw Error(ErrorCode::Corrupt, fmt::format("{}: {} has not the shape of its linear", file.path().string(), name));
  }
  std::memcpy(bytes.data(), file.bytes(found).data(), bytes.size());
  file.release(found);
  return tensor;
}

}  // namespace

LossStore::LossStore(std::filesystem::path folder, const Json& identity) : folder_(std::move(folder)) {
  const std::filesystem::path file = folder_ / "statistics.json";
  if (std::filesystem::exists(file)) {
    expect_same(file, parse_json(read_text_file(file), file.string()), identity);
    return;
  }
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (!std::filesystem::is_directory(folder_)) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--statistics: {} cannot be made a folder: {}", folder_.string(), error.message()));
  }
  if (!std::filesystem::is_empty(folder_, error) || error) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("--statistics: {} holds other files; give a new folder", folder_.string()));
  }
  write_text_file(file, identity.dump(2) + "\n");
}

bool LossStore::is_complete(std::int64_t num_blocks) const {
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    if (!std::filesystem::exists(path_of(b))) return false;
  }
  return true;
}

void LossStore::save(const FloatBlock& block, std::int64_t block_idx,
                     const std::vector<StageLossStatistics>& statistics) const {
  const std::filesystem::path path = path_of(block_idx);
  formats::SafetensorsShard file(path);
  for (std::size_t s = 0; s < block.stages.size(); ++s) {
    for (std::size_t i = 0; i < block.stages[s].size(); ++i) {
      const std::string& name = block.stages[s][i].name;
      const LossStatistics& loss = statistics[s].linears[i];
      file.add(name + std::string(kFisher), loss.fisher.view());
      file.add(name + std::string(kGuidedGram), loss.guided_gram.view());
    }
  }
  file.seal();
  file.commit_as(path);
}

std::vector<StageLossStatistics> LossStore::load(const FloatBlock& block, std::int64_t block_idx) const {
  const formats::TensorFile file = formats::open_safetensors(path_of(block_idx));
  std::vector<StageLossStatistics> statistics(block.stages.size());
  for (std::size_t s = 0; s < block.stages.size(); ++s) {
    for (const FloatLinear& linear : block.stages[s]) {
      const auto weight = linear.weight.matrix<float>();
      LossStatistics& loss = statistics[s].linears.emplace_back();
      loss.fisher = read_tensor(file, linear.name + std::string(kFisher), weight.rows, weight.cols);
      loss.guided_gram = read_tensor(file, linear.name + std::string(kGuidedGram), weight.cols, weight.cols);
    }
  }
  return statistics;
}

std::filesystem::path LossStore::path_of(std::int64_t block_idx) const {
  return folder_ / fmt::format("block-{:05}.safetensors", block_idx);
}

}  // namespace nibble::quantize
