#include "quantize/journal.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <set>
#include <utility>

#include "core/crash_point.h"
#include "core/file.h"
#include "core/log.h"
#include "quantize/journal_entry.h"

namespace nibble::quantize {
namespace {

constexpr const char* kScratchFolder = ".nibble";
constexpr const char* kJournalFile = "journal.jsonl";
constexpr const char* kLockFile = "lock";
constexpr std::string_view kStatePrefix = "state-";

std::string holder() {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  return fmt::format("process {} on {}, since {:%Y-%m-%d %H:%M:%S} UTC", ::getpid(), host.data(), fmt::gmtime(now));
}

[[noreturn]] void throw_journal_error(const char* action, const std::filesystem::path& path) {
  throw Error(ErrorCode::Unavailable, fmt::format("{}: cannot {}: {}", path.string(), action, std::strerror(errno)));
}

/// Whether a folder holds anything besides the scratch folder.
bool holds_something(const std::filesystem::path& folder) {
  return std::ranges::any_of(std::filesystem::directory_iterator(folder),
                             [](const auto& entry) { return entry.path().filename() != kScratchFolder; });
}

/// "seed was 0, is 1", for every leaf that differs.
void collect_differences(const Json& before, const Json& now, const std::string& path, std::vector<std::string>& to) {
  if (before.is_object() && now.is_object()) {
    std::set<std::string> keys;
    for (const auto& item : before.items()) keys.insert(item.key());
    for (const auto& item : now.items()) keys.insert(item.key());
    for (const std::string& key : keys) {
      const Json was = before.contains(key) ? before[key] : Json();
      const Json is = now.contains(key) ? now[key] : Json();
      collect_differences(was, is, path.empty() ? key : path + " " + key, to);
    }
    return;
  }
  if (before != now) to.push_back(fmt::format("{} was {}, is {}", path, before.dump(), now.dump()));
}

void expect_same_identity(const Json& before, const Json& now, const std::filesystem::path& output) {
  std::vector<std::string> differences;
  collect_differences(before, now, "", differences);
  if (differences.empty()) return;
  std::string text = differences.front();
  for (std::size_t i = 1; i < std::min<std::size_t>(differences.size(), 4); ++i) text += "; " + differences[i];
  if (differences.size() > 4) text += fmt::format("; and {} more", differences.size() - 4);
  throw Error(ErrorCode::InvalidArgument,
              fmt::format("--resume: {} was begun otherwise, so its result could not be the same: {}; repeat the first "
                          "command, or remove the folder to start again",
                          output.string(), text));
}

}  // namespace

Journal::Journal(std::filesystem::path output, Resume resume, const Json& identity)
    : output_(std::move(output)), scratch_(output_ / kScratchFolder), identity_(identity) {
  lock();
  try {
    open_file();
    read(resume, identity);
  } catch (...) {
    // A folder that somebody else's files fill keeps them, and a stopped run keeps its own.
    if (is_new_) leave_nothing();
    if (descriptor_ >= 0) ::close(descriptor_);
    throw;
  }
}

Journal::~Journal() {
  if (lock_ && entries_.empty() && !is_finished_) leave_nothing();
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool Journal::is_in(const std::filesystem::path& output) {
  return std::filesystem::exists(output / kScratchFolder);
}

std::int64_t Journal::bytes_in(const std::filesystem::path& output) {
  if (!is_in(output)) return 0;
  std::int64_t total = 0;
  std::error_code error;  // a file that goes in the meantime counts for nothing
  for (const auto& entry : std::filesystem::recursive_directory_iterator(output, error)) {
    const auto size = entry.is_regular_file(error) ? entry.file_size(error) : 0;
    if (!error) total += static_cast<std::int64_t>(size);
  }
  return total;
}

void Journal::lock() {
  std::error_code error;
  made_output_ = std::filesystem::create_directories(output_, error);
  if (!error) std::filesystem::create_directory(scratch_, error);
  if (error) {
    throw Error(ErrorCode::Unavailable, fmt::format("{}: cannot create: {}", scratch_.string(), error.message()));
  }
  lock_ = FileLock::try_acquire(scratch_ / kLockFile, holder());
  if (lock_) return;
  const std::string who = FileLock::read_holder(scratch_ / kLockFile);
  throw Error(ErrorCode::Unavailable,
              fmt::format("{}: another nibble is writing there ({}); wait for it or choose another --output",
                          output_.string(), who.empty() ? "it does not say which" : who));
}

void Journal::open_file() {
  const std::filesystem::path path = scratch_ / kJournalFile;
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw_journal_error("open", path);
}

void Journal::read(Resume resume, const Json& identity) {
  const std::filesystem::path path = scratch_ / kJournalFile;
  const std::string text = read_text_file(path);
  is_new_ = text.empty();
  Json begun;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t newline = text.find('\n', begin);
    if (newline == std::string::npos) break;  // the run died while it wrote this line: it does not count
    const std::string where = fmt::format("{} line {}", path.string(), begin == 0 ? 1 : entries_.size() + 2);
    Json line = parse_json(std::string_view(text).substr(begin, newline - begin), where);
    if (begin == 0) {
      begun = std::move(line);
    } else {
      try {
        entries_.push_back(journal_entry_from_json(line));
      } catch (const Error& error) {
        throw error.in(where);
      }
      entry_begins_.push_back(static_cast<std::int64_t>(begin));
    }
    begin = newline + 1;
    end_ = static_cast<std::int64_t>(begin);
  }
  const bool has_config = std::filesystem::exists(output_ / "config.json");
  if (begun.is_null() && !(has_config && resume == Resume::Yes)) {
    if (holds_something(output_)) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("{}: exists already; choose another --output or remove it", output_.string()));
    }
    begin(identity);
    return;
  }
  if (resume == Resume::No) {
    throw Error(
        ErrorCode::InvalidArgument,
        fmt::format("{}: holds a run that was stopped; go on with --resume, or remove the folder", output_.string()));
  }
  if (!begun.is_null()) expect_same_identity(begun, identity, output_);
  is_finished_ = has_config;
  if (::ftruncate(descriptor_, end_) != 0 || ::lseek(descriptor_, end_, SEEK_SET) < 0) {
    throw_journal_error("cut off", path);
  }
  delete_strays();
}

void Journal::begin(const Json& identity) {
  if (::ftruncate(descriptor_, 0) != 0) throw_journal_error("empty", scratch_ / kJournalFile);
  delete_strays();
  crash_point();
  write_line(identity);
  sync_folder(scratch_);
  sync_folder(output_);
  sync_folder(std::filesystem::absolute(output_).parent_path());
}

void Journal::write_line(const Json& line) {
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  for (std::size_t written = 0; written < text.size();) {
    const ssize_t count = ::write(descriptor_, text.data() + written, text.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_journal_error("write", scratch_ / kJournalFile);
    written += static_cast<std::size_t>(count);
  }
  crash_point();
  if (::fsync(descriptor_) != 0) throw_journal_error("sync", scratch_ / kJournalFile);
  end_ += static_cast<std::int64_t>(text.size());
  crash_point();
}

const JournalEntry* Journal::find_block(std::string_view block) const {
  const auto found = std::ranges::find(entries_, block, &JournalEntry::block);
  return found == entries_.end() ? nullptr : &*found;
}

std::vector<formats::WrittenTensor> Journal::written_tensors() const {
  std::vector<formats::WrittenTensor> tensors;
  for (const JournalEntry& entry : entries_) tensors.insert(tensors.end(), entry.tensors.begin(), entry.tensors.end());
  return tensors;
}

void Journal::rewind(std::size_t num_entries) {
  if (num_entries >= entries_.size()) return;
  end_ = entry_begins_[num_entries];
  if (::ftruncate(descriptor_, end_) != 0 || ::lseek(descriptor_, end_, SEEK_SET) < 0) {
    throw_journal_error("cut off", scratch_ / kJournalFile);
  }
  entries_.resize(num_entries);
  entry_begins_.resize(num_entries);
  delete_strays();
}

void Journal::append(JournalEntry entry) {
  check(!is_written(), "nothing follows the last entry of a journal");
  crash_point();
  const std::int64_t begin = end_;
  write_line(to_json(entry));
  entry_begins_.push_back(begin);
  entries_.push_back(std::move(entry));
  for (const std::string& name : entries_.back().dropped_states) {
    std::filesystem::remove(state_path(name));
    crash_point();
  }
}

bool Journal::has_state(std::string_view name) const {
  bool is_live = false;
  for (const JournalEntry& entry : entries_) {
    if (std::ranges::find(entry.saved_states, name) != entry.saved_states.end()) is_live = true;
    if (std::ranges::find(entry.dropped_states, name) != entry.dropped_states.end()) is_live = false;
  }
  return is_live && std::filesystem::exists(state_path(name));
}

std::filesystem::path Journal::state_path(std::string_view name) const {
  return scratch_ / (std::string(kStatePrefix) + std::string(name));
}

void Journal::delete_strays() const {
  for (const auto& file : std::filesystem::directory_iterator(scratch_)) {
    const std::string name = file.path().filename().string();
    if (name.starts_with(kStatePrefix) && !has_state(name.substr(kStatePrefix.size()))) {
      std::filesystem::remove(file.path());
    }
  }
}

void Journal::leave_nothing() {
  std::error_code ignored;  // what cannot be removed stays, and is no checkpoint
  for (const auto& file : std::filesystem::directory_iterator(scratch_, ignored)) {
    if (file.path().filename() != kLockFile) std::filesystem::remove_all(file.path(), ignored);
  }
  lock_->remove();
  std::filesystem::remove(scratch_, ignored);
  if (made_output_) std::filesystem::remove(output_, ignored);
}

void Journal::remove() {
  // The journal goes last: as long as it is there, it vouches for the rest.
  for (const auto& file : std::filesystem::directory_iterator(scratch_)) {
    const std::filesystem::path name = file.path().filename();
    if (name == kLockFile || name == kJournalFile) continue;
    std::filesystem::remove_all(file.path());
    crash_point();
  }
  is_finished_ = true;
  std::filesystem::remove(scratch_ / kJournalFile);
  crash_point();
  lock_->remove();
  crash_point();
  std::filesystem::remove(scratch_);
}

}  // namespace nibble::quantize
