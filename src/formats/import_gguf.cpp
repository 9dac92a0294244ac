#include "formats/import_gguf.h"

#include <fmt/format.h>

#include <cmath>

#include "formats/checkpoint.h"
#include "formats/gguf_checkpoint.h"

namespace nibble::formats {
namespace {

CheckpointFiles make_files(const Checkpoint& checkpoint) {
  CheckpointFiles files{checkpoint.config(), {}};
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    files.texts.emplace_back(name, checkpoint.side_file(name).value());
  }
  return files;
}

void check_finite(const Tensor& half, const std::string& name) {
  for (const Half value : half.span<Half>()) {
    if (std::isfinite(to_float(value))) continue;
    throw Error(ErrorCode::Unsupported, fmt::format("{}: holds a value that f16 cannot (above 65504, or NaN)", name));
  }
}

}  // namespace

std::int64_t import_gguf(const ImportOptions& options) {
  const std::unique_ptr<Checkpoint> checkpoint = open_gguf(options.gguf);
  const CheckpointFiles files = make_files(*checkpoint);  // first: an unknown tokenizer fails before the long part
  CheckpointWriter writer(options.output);
  const std::vector<std::string> names = checkpoint->tensor_names();
  std::int64_t done = 0;
  for (const std::string& name : names) {
    const Tensor half = to_dtype(checkpoint->tensor(name), DType::F16);
    check_finite(half, name);
    writer.add(name, half);
    checkpoint->release(name.substr(0, name.rfind('.')));
    options.on_tensor(++done, static_cast<std::int64_t>(names.size()));
  }
  writer.finish(files);
  return writer.total_bytes();
}

}  // namespace nibble::formats
