#pragma once

#include <cstddef>
#include <string>

#include "quantize/activation_stream.h"
#include "quantize/journal.h"

namespace nibble::quantize {

/// The scratch states of a walk over the blocks first to last: the activation stream as it leaves a block. Writing one
/// takes longer than a small block, so one is written where that costs at most a twentieth of the time since the last;
/// a resumed run repeats the blocks behind it.
class StreamStates {
 public:
  StreamStates(Journal& journal, ActivationStream& stream) : journal_(journal), stream_(stream) {}

  /// Brings the stream to the last saved state and the journal back to it. Nothing saved: to before the first block.
  void restore();
  /// To be called when `entry` holds a finished block, before it is appended.
  void save(JournalEntry& entry);

 private:
  Journal& journal_;
  ActivationStream& stream_;
  std::string saved_;  // the last one's name; empty: none yet
  double last_save_seconds_ = 0;
  double last_save_time_ = 0;  // by the steady clock
};

/// Forgets every finished block.
void rewind_to_first_block(Journal& journal);

}  // namespace nibble::quantize
