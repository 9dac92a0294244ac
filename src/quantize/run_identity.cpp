#include "quantize/run_identity.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/hash.h"
#include "quantize/linear_algebra.h"

namespace nibble::quantize {
namespace {

/// Head, tail and pieces spread between them; whole where the file is small.
std::string sampled_digest(const std::filesystem::path& path) {
  constexpr std::size_t kPieceBytes = std::size_t{64} << 10;
  constexpr std::size_t kNumPieces = 66;
  const MappedFile file = MappedFile::open(path);
  const auto bytes = file.bytes();
  if (bytes.size() <= kNumPieces * kPieceBytes) return sha256_hex(bytes);
  Sha256 hash;
  for (std::size_t i = 0; i < kNumPieces; ++i) {
    const auto piece = bytes.subspan((bytes.size() - kPieceBytes) / (kNumPieces - 1) * i, kPieceBytes);
    hash.add(piece);
    file.release(piece);
  }
  hash.add(bytes.last(kPieceBytes));
  return hash.hex_digest();
}

Json identity_of_file(const std::filesystem::path& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) throw Error(ErrorCode::NotFound, path.string() + ": is gone");
  return {{"bytes", static_cast<std::int64_t>(status.st_size)},
          {"modified", static_cast<double>(status.st_mtim.tv_sec) + 1e-9 * static_cast<double>(status.st_mtim.tv_nsec)},
          {"sampled_sha256", sampled_digest(path)}};
}

/// A GGUF file, or a folder's weights and everything that describes them.
Json identity_of_model(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return {{path.filename().string(), identity_of_file(path)}};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    const std::string extension = entry.path().extension().string();
    const bool counts = extension == ".safetensors" || extension == ".json" || extension == ".jinja";
    if (counts && entry.is_regular_file()) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  Json identity = Json::object();
  for (const auto& file : files) identity[file.filename().string()] = identity_of_file(file);
  return identity;
}

Json identity_of_fp8(const Fp8Options& options) {
  const auto& [granularity, activations, kv_cache_scales, percentile] = options;
  return {{"granularity", static_cast<int>(granularity)},
          {"static_activations", activations == ActivationScheme::Static},
          {"kv_cache_scales", kv_cache_scales == KvCacheScales::Calibrated},
          {"percentile", percentile}};
}

Json identity_of_method(const PipelineOptions& options) {
  // A structured binding, so that a new option does not compile before it is named here.
  const auto& [grid, group_size, group_index, damp_percent, rounding, drift_correction, guidance, loss, fp8,
               squeezellm] = options.method_options;
  const auto& [sensitivity, sparsity] = squeezellm;
  const auto& [labels, fisher_form, loss_seed] = loss;
  return {{"name", options.method},
          {"bits", grid.bits},
          {"sym", grid.symmetry == Symmetry::Symmetric},
          {"group_size", group_size},
          {"desc_act", group_index == GroupIndex::DescAct},
          {"damp_percent", damp_percent},
          {"rounding", rounding == Rounding::Gptq ? "gptq" : "nearest"},
          {"drift_correction", drift_correction},
          {"guidance", static_cast<int>(guidance)},
          {"loss_labels", static_cast<int>(labels)},
          {"fisher_form", static_cast<int>(fisher_form)},
          {"loss_seed", loss_seed},
          {"fp8", identity_of_fp8(fp8)},
          {"sensitivity", static_cast<int>(sensitivity)},
          {"sparsity", sparsity}};
}

Json identity_of_layers(const PipelineOptions& options) {
  Json identity = {{"skipped", options.skip_layers}};
  for (const auto& [pattern, bits, group_size, symmetry] : options.layer_overrides) {
    identity["overrides"].push_back({{"pattern", pattern},
                                     {"bits", bits.value_or(0)},
                                     {"group_size", group_size.value_or(0)},
                                     {"sym", symmetry ? Json(*symmetry == Symmetry::Symmetric) : Json()}});
  }
  return identity;
}

Json identity_of_calibration(const CalibrationOptions& options) {
  const auto& [sources, num_samples, seq_len, seed] = options;
  const std::string text = sources.front() == "self" ? "self" : digest_of(choose_excerpts(options));
  return {{"text", text}, {"samples", num_samples}, {"seq_len", seq_len}, {"seed", seed}};
}

}  // namespace

Json run_identity(const formats::Checkpoint& checkpoint, const Plan& plan, const PipelineOptions& options) {
  Json identity = {{"nibble", NIBBLE_VERSION},
                   {"method_version", plan.method->version},
                   {"method", identity_of_method(options)},
                   {"format", plan.format},
                   {"layers", identity_of_layers(options)},
                   {"model", identity_of_model(checkpoint.path())}};
  if (plan.method->calibration(options.method_options) == Calibration::None) return identity;
  identity["calibration"] = identity_of_calibration(options.calibration);
  identity["device"] = options.device == "auto" ? "cpu" : options.device;
  identity["blas_kernels"] = blas_kernels();
  return identity;
}

Json statistics_identity(const formats::Checkpoint& checkpoint, const PipelineOptions& options) {
  const LossOptions& loss = options.method_options.loss;
  return {{"nibble", NIBBLE_VERSION},
          {"loss_labels", static_cast<int>(loss.labels)},
          {"fisher_form", static_cast<int>(loss.fisher_form)},
          {"loss_seed", loss.seed},
          {"model", identity_of_model(checkpoint.path())},
          {"calibration", identity_of_calibration(options.calibration)},
          {"device", options.device == "auto" ? "cpu" : options.device},
          {"blas_kernels", blas_kernels()}};
}

}  // namespace nibble::quantize
