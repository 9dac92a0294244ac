#include "quantize/saved_samples.h"

#include <algorithm>
#include <span>

#include "core/file.h"

namespace nibble::quantize {
namespace {

constexpr const char* kState = "calibration-tokens";

CalibrationSamples read_samples(const std::filesystem::path& path, const CalibrationOptions& options) {
  CalibrationSamples samples;
  samples.num_samples = options.num_samples;
  samples.seq_len = options.seq_len;
  samples.tokens.resize(static_cast<std::size_t>(options.num_samples * options.seq_len));
  const MappedFile file = MappedFile::open(path);
  const auto tokens = std::as_writable_bytes(std::span(samples.tokens));
  if (file.size_bytes() != tokens.size()) {
    throw Error(ErrorCode::Corrupt, path.string() + ": does not hold this run's calibration tokens: its size is wrong");
  }
  std::ranges::copy(file.bytes(), tokens.begin());
  return samples;
}

}  // namespace

CalibrationSamples make_saved_samples(const formats::Checkpoint& checkpoint, const CalibrationOptions& options,
                                      int num_threads, Journal& journal) {
  if (options.sources.front() != "self") return make_samples(checkpoint, options, num_threads);
  if (journal.has_state(kState)) return read_samples(journal.state_path(kState), options);
  CalibrationSamples samples = make_samples(checkpoint, options, num_threads);
  AtomicFile file = AtomicFile::reopen(journal.state_path(kState), 0);
  file.write(std::as_bytes(std::span(samples.tokens)));
  file.seal();
  JournalEntry entry;
  entry.saved_states = {kState};
  journal.append(std::move(entry));
  return samples;
}

}  // namespace nibble::quantize
