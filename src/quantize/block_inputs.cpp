#include "quantize/block_inputs.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace nibble::quantize {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view what) {
  throw Error(ErrorCode::Unavailable, fmt::format("{}: {} the scratch file of the backward pass: {}", path.string(),
                                                  what, std::strerror(errno)));
}

}  // namespace

BlockInputs::BlockInputs(std::filesystem::path file, std::int64_t num_tokens, std::int64_t width)
    : path_(std::move(file)), num_tokens_(num_tokens), width_(width) {
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail(path_, "cannot open");
}

BlockInputs::~BlockInputs() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void BlockInputs::store(std::int64_t block_idx, std::int64_t first_token, Matrix<const float> hidden) {
  const auto bytes = std::as_bytes(std::span(hidden.data, static_cast<std::size_t>(hidden.rows * width_)));
  std::int64_t offset = offset_of(block_idx, first_token);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t count = ::pwrite(descriptor_, bytes.data() + done, bytes.size() - done, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(path_, "cannot write");
    done += static_cast<std::size_t>(count);
    offset += count;
  }
}

void BlockInputs::load(std::int64_t block_idx, std::int64_t first_token, Matrix<float> hidden) const {
  const auto bytes = std::as_writable_bytes(std::span(hidden.data, static_cast<std::size_t>(hidden.rows * width_)));
  std::int64_t offset = offset_of(block_idx, first_token);
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t count = ::pread(descriptor_, bytes.data() + done, bytes.size() - done, offset);
    if (count < 0 && errno == EINTR) continue;
    if (count == 0) throw Error(ErrorCode::Corrupt, path_.string() + ": ends too early; start the run anew");
    if (count < 0) fail(path_, "cannot read");
    done += static_cast<std::size_t>(count);
    offset += count;
  }
}

void BlockInputs::sync() {
  if (::fdatasync(descriptor_) != 0) fail(path_, "cannot write");
}

}  // namespace nibble::quantize
