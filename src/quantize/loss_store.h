#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "core/json.h"
#include "quantize/float_block.h"
#include "quantize/loss_statistics.h"

namespace nibble::quantize {

/// The end loss's statistics of one float model and calibration in a folder (--statistics), so that quantizing at
/// another width, or by another method that looks at the end loss, needs no second pass:
///
///   statistics.json            what they were computed from
///   block-0000i.safetensors    of one block: NAME.fisher and NAME.guided_gram of each linear
///
/// A block's file appears under its name only when complete, and blocks of an interrupted pass are there to stay. One
/// thread calls it.
class LossStore {
 public:
  /// Every sum that a method may read.
  static constexpr LossNeeds kNeeds{.fisher = true, .guided_gram = true};

  /// Creates the folder where there is none. `identity` is an object of everything that the statistics depend on.
  /// Errors: InvalidArgument where the folder holds statistics of something else, naming what differs, or other files.
  LossStore(std::filesystem::path folder, const Json& identity);

  /// Whether blocks 0 … num_blocks - 1 are all there.
  bool is_complete(std::int64_t num_blocks) const;
  /// Errors: as AtomicFile.
  void save(const FloatBlock& block, std::int64_t block_idx, const std::vector<StageLossStatistics>& statistics) const;
  /// [stages]. Errors: NotFound; Corrupt naming the file and what is wrong in it.
  std::vector<StageLossStatistics> load(const FloatBlock& block, std::int64_t block_idx) const;

 private:
  std::filesystem::path path_of(std::int64_t block_idx) const;

  std::filesystem::path folder_;
};

}  // namespace nibble::quantize
