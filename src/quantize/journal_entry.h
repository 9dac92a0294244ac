#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "formats/checkpoint.h"
#include "formats/written_tensor.h"
#include "quantize/layer_report.h"

namespace nibble::quantize {

/// What one step of a run made durable. A step is a finished block, a scratch state, or both.
struct JournalEntry {
  std::string block;                            // "model.layers.3", whose tensors are written; or empty
  std::vector<formats::WrittenTensor> tensors;  // what the shards got since the entry before
  std::vector<formats::ModuleScheme> schemes;   // of the block's quantized linears, for the config
  std::vector<LayerReport> layers;
  std::vector<std::string> saved_states;    // complete since this entry (Journal::state_path)
  std::vector<std::string> dropped_states;  // of no use since this entry: their files are deleted
  bool is_last = false;                     // every tensor of the checkpoint is written
};

/// One line of the journal.
Json to_json(const JournalEntry& entry);
/// Errors: InvalidArgument and Corrupt naming the key.
JournalEntry journal_entry_from_json(const Json& json);

}  // namespace nibble::quantize
