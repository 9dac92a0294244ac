#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include "quantize/journal.h"

namespace nibble::quantize {

/// The scratch states of a walk over the blocks: the activation stream as it leaves a block, or the end loss's gradient
/// where it enters one. Writing one takes longer than a small block, so one is written where that costs at most a
/// twentieth of the time since the last; a resumed run repeats the blocks behind it.
class StreamStates {
 public:
  using Transfer = std::function<void(const std::filesystem::path& file)>;
  /// `save` writes the state durably, `restore` reads it.
  StreamStates(Journal& journal, Transfer save, Transfer restore)
      : journal_(journal), save_(std::move(save)), restore_(std::move(restore)) {}

  /// Brings the stream to the last saved state and the journal back to it. Nothing saved: the journal to before the
  /// first block, and false.
  bool restore();
  /// The state before the first block, which a restored walk needs; with it goes the state `companion`, which the
  /// caller has written.
  void save_start(const std::string& companion);
  /// To be called when `entry` holds a finished block, before it is appended.
  void save(JournalEntry& entry);

 private:
  Journal& journal_;
  Transfer save_;
  Transfer restore_;
  std::string saved_;  // the last one's name; empty: none yet
  double last_save_seconds_ = 0;
  double last_save_time_ = 0;  // by the steady clock
};

}  // namespace nibble::quantize
