#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/file_lock.h"
#include "core/json.h"
#include "formats/written_tensor.h"
#include "quantize/journal_entry.h"

namespace nibble::quantize {

enum class Resume : std::uint8_t {
  No,   // the output folder must be new or empty
  Yes,  // goes on where a stopped run left off; begins where there is none
};

/// What a run into an output folder has achieved, so that another can go on after any crash. It lives in the folder's
/// `.nibble` until the checkpoint is complete:
///
///   lock             locked by the process at work, and says which that is
///   journal.jsonl    the run's identity, then an entry a line, each synced before the next step begins
///   shard-0000i      the checkpoint's shards in the making (formats::CheckpointWriter)
///   state-NAME       scratch states by name: calibration tokens, an activation stream after a block, …
///
/// Blocks may finish in any order. What an entry names is durable before the entry is; what no entry names does not
/// count: a resumed run cuts it off or deletes it. Whoever walks the blocks decides which states it needs and, with
/// `rewind`, from which entry on it repeats its work.
///
/// One thread calls it. Destroyed before `remove`, it leaves everything for a later run, except that a run without one
/// entry leaves nothing.
class Journal {
 public:
  /// Locks `output` (created) and reads what is there. `identity` is an object of everything that the result depends
  /// on; a run is only resumed by one with the same. Errors: Unavailable naming the process that holds the folder;
  /// InvalidArgument where it holds something else, a stopped run without Resume::Yes, or one of another identity,
  /// naming what differs; Corrupt naming the line.
  Journal(std::filesystem::path output, Resume resume, const Json& identity);
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  /// Whether a run is at work in a folder, or was stopped there.
  static bool is_in(const std::filesystem::path& output);
  /// Bytes of all files that such a run has in the folder; 0 where there is none.
  static std::int64_t bytes_in(const std::filesystem::path& output);
  /// Whether the folder holds the finished checkpoint: a run was stopped while it cleaned up. Only `remove` is left.
  bool is_finished() const { return is_finished_; }
  /// Of this run, as it was given.
  const Json& identity() const { return identity_; }
  const std::filesystem::path& scratch() const { return scratch_; }
  const std::vector<JournalEntry>& entries() const { return entries_; }
  /// The entry of a finished block; nullptr where it is not finished.
  const JournalEntry* find_block(std::string_view block) const;
  /// Tensors of all entries, in order.
  std::vector<formats::WrittenTensor> written_tensors() const;
  /// Whether all tensors are written, so that only naming the files is left.
  bool is_written() const { return !entries_.empty() && entries_.back().is_last; }

  /// Forgets all entries but the first `num_entries`.
  void rewind(std::size_t num_entries);
  /// Returns when the entry is durable. Its tensors (CheckpointWriter::sync) and states are so already.
  void append(JournalEntry entry);

  /// Whether the state was saved and not dropped.
  bool has_state(std::string_view name) const;
  /// Where the state's file is or will be. A writer syncs it before it appends the entry that names it.
  std::filesystem::path state_path(std::string_view name) const;

  /// The checkpoint is complete: removes all traces, lock last.
  void remove();

 private:
  void lock();
  void open_file();
  void read(Resume resume, const Json& identity);
  void begin(const Json& identity);
  void write_line(const Json& line);
  void delete_strays() const;
  void leave_nothing();

  std::filesystem::path output_;
  std::filesystem::path scratch_;
  Json identity_;
  bool made_output_ = false;
  bool is_finished_ = false;
  bool is_new_ = true;  // nothing of an earlier run was there
  std::optional<FileLock> lock_;
  int descriptor_ = -1;  // of journal.jsonl, at its end
  std::vector<JournalEntry> entries_;
  std::vector<std::int64_t> entry_begins_;  // byte in the file where each entry's line begins
  std::int64_t end_ = 0;                    // behind the last line
};

}  // namespace nibble::quantize
