#include <fmt/format.h>

#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "core/crash_point.h"
#include "core/file.h"
#include "formats/checkpoint.h"
#include "formats/linear_format.h"
#include "formats/safetensors.h"

namespace nibble::formats {
namespace {

/// The weight as f16. Errors: Unsupported where a finite value overflows.
Tensor to_half_checked(const weights::DenseWeights& weights) {
  Tensor half = to_dtype(weights.weight, DType::F16);
  for (const Half value : half.span<Half>()) {
    if (!std::isfinite(to_float(value))) {
      throw Error(ErrorCode::Unsupported, "weight: a value is NaN, infinite or above 65504, the largest f16");
    }
  }
  return half;
}

}  // namespace

class CheckpointWriter::Impl {
 public:
  Impl(std::filesystem::path folder, std::optional<std::filesystem::path> scratch, std::int64_t max_shard_bytes)
      : folder_(std::move(folder)), scratch_(std::move(scratch)), max_shard_bytes_(max_shard_bytes) {
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) {
      throw Error(ErrorCode::Unavailable, fmt::format("{}: cannot create: {}", folder_.string(), error.message()));
    }
    if (std::filesystem::exists(folder_ / "config.json")) {
      throw Error(ErrorCode::InvalidArgument,
                  fmt::format("{}: already holds a checkpoint; choose another folder or remove it", folder_.string()));
    }
  }

  /// Takes over what earlier runs wrote: all shards but the last are full.
  void restore(std::span<const WrittenTensor> written) {
    for (std::size_t first = 0; first < written.size();) {
      std::size_t end = first;
      while (end < written.size() && written[end].shard == written[first].shard) ++end;
      restore_shard(written.subspan(first, end - first), end == written.size(), written.back().shard + 1);
      first = end;
    }
  }

  void add(std::string_view name, TensorView tensor) {
    check(!finished_, "CheckpointWriter::add after finish");
    if (!names_.emplace(name).second) {
      throw Error(ErrorCode::InvalidArgument, fmt::format("{}: tensor {} is written twice", folder_.string(), name));
    }
    const auto size = static_cast<std::int64_t>(tensor.size_bytes());
    if (open_ && (open_->data_bytes() + size > max_shard_bytes_ || !open_->has_room_for(name, tensor.dtype()))) {
      close_shard();
    }
    if (!open_) open_.emplace(begin_shard());
    open_->add(name, tensor);
    total_bytes_ += size;
    unsynced_.push_back({std::string(name), tensor.dtype(), tensor.shape(), static_cast<std::int64_t>(shards_.size())});
  }

  void add_linear(std::string_view module, const weights::LinearWeights& weights, std::string_view format) {
    try {
      for (const NamedTensor& named : tensors_of(weights, format))
        add(fmt::format("{}.{}", module, named.suffix), named.tensor);
    } catch (const Error& error) {
      throw error.in(module);
    }
  }

  std::vector<WrittenTensor> sync() {
    if (open_) open_->sync();
    if (scratch_) sync_folder(*scratch_);
    return std::exchange(unsynced_, {});
  }

  void finish(const CheckpointFiles& files) {
    check(!finished_, "CheckpointWriter::finish twice");
    if (names_.empty()) throw Error(ErrorCode::InvalidArgument, folder_.string() + ": a checkpoint without tensors");
    check_complete_sets();
    if (open_) close_shard();
    name_shards();
    for (const auto& [name, text] : files.texts) {
      check(is_plain_file_name(name), "side file with a path");
      write_text(name, text);
    }
    write_json("config.json", files.config);  // last: only with it does the folder look like a model
    finished_ = true;
  }

  std::int64_t total_bytes() const { return total_bytes_; }

 private:
  static std::vector<NamedTensor> tensors_of(const weights::LinearWeights& weights, std::string_view format) {
    weights::validate(weights);
    if (format != "dense") return find_linear_format(format).write(weights);
    std::vector<NamedTensor> tensors;
    tensors.push_back({"weight", to_half_checked(expect_kind<weights::DenseWeights>(weights, "dense"))});
    return tensors;
  }

  /// A shard that takes no more tensors.
  struct ClosedShard {
    std::vector<std::string> names;
    std::optional<SafetensorsShard> file;  // nothing: an earlier run has given it its name
  };

  std::filesystem::path scratch_path(std::size_t shard_idx) const {
    return *scratch_ / fmt::format("shard-{:05}", shard_idx + 1);
  }

  SafetensorsShard begin_shard() const {
    if (scratch_) return SafetensorsShard::reopen(scratch_path(shards_.size()), {});
    return SafetensorsShard(folder_ / fmt::format("model-{:05}.safetensors", shards_.size() + 1));
  }

  void close_shard() {
    open_->seal();
    shards_.push_back({open_->names(), std::move(*open_)});
    open_.reset();
  }

  void restore_shard(std::span<const WrittenTensor> tensors, bool is_last, std::int64_t num_shards) {
    const std::filesystem::path path = scratch_path(shards_.size());
    for (const WrittenTensor& tensor : tensors) {
      names_.insert(tensor.name);
      total_bytes_ += tensor.size_bytes();
    }
    if (!std::filesystem::exists(path) && std::filesystem::exists(shard_path(shards_.size(), num_shards))) {
      ClosedShard& named = shards_.emplace_back();
      for (const WrittenTensor& tensor : tensors) named.names.push_back(tensor.name);
      return;
    }
    if (!std::filesystem::exists(path)) {
      throw Error(ErrorCode::Corrupt, fmt::format("{}: is missing, so what was written there is lost; remove {} and "
                                                  "start again",
                                                  path.string(), folder_.string()));
    }
    open_.emplace(SafetensorsShard::reopen(path, tensors));
    if (!is_last) close_shard();
  }

  /// A quantized module has all of its tensors, and not a float weight beside them.
  void check_complete_sets() const {
    std::map<std::string_view, std::vector<std::string_view>> suffixes;
    for (const std::string& name : names_) {
      const std::size_t dot = name.rfind('.');
      if (dot == std::string::npos) continue;
      suffixes[std::string_view(name).substr(0, dot)].push_back(std::string_view(name).substr(dot + 1));
    }
    for (const auto& [module, found] : suffixes) {
      if (const auto fault = find_fault(found)) {
        throw Error(ErrorCode::InvalidArgument, fmt::format("{}: {} {}", folder_.string(), module, *fault));
      }
    }
  }

  std::filesystem::path shard_path(std::size_t shard_idx, std::int64_t num_shards) const {
    if (num_shards == 1) return folder_ / "model.safetensors";
    return folder_ / fmt::format("model-{:05}-of-{:05}.safetensors", shard_idx + 1, num_shards);
  }

  void name_shards() {
    Json weight_map = Json::object();
    auto& entries = weight_map.get_ref<Json::object_t&>();
    for (std::size_t i = 0; i < shards_.size(); ++i) {
      const std::filesystem::path path = shard_path(i, static_cast<std::int64_t>(shards_.size()));
      // emplace would search every earlier key; names are unique already.
      for (const std::string& tensor : shards_[i].names)
        entries.std::vector<Json::object_t::value_type>::emplace_back(tensor, path.filename().string());
      crash_point();
      if (shards_[i].file) shards_[i].file->commit_as(path);
    }
    if (shards_.size() == 1) return;
    write_json("model.safetensors.index.json",
               {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", std::move(weight_map)}});
  }

  /// Under its name only when complete. The temporary file lies in the scratch folder where there is one, so that a
  /// killed run leaves none beside the model.
  void write_text(const std::string& name, std::string_view text) const {
    crash_point();
    AtomicFile file = scratch_ ? AtomicFile::reopen(*scratch_ / name, 0) : AtomicFile(folder_ / name);
    file.write(text);
    file.commit_as(folder_ / name);
  }

  void write_json(const std::string& name, const Json& json) const {
    write_text(name, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }

  std::filesystem::path folder_;
  std::optional<std::filesystem::path> scratch_;
  std::int64_t max_shard_bytes_;
  std::optional<SafetensorsShard> open_;
  std::vector<ClosedShard> shards_;
  std::vector<WrittenTensor> unsynced_;
  std::set<std::string, std::less<>> names_;
  std::int64_t total_bytes_ = 0;
  bool finished_ = false;
};

CheckpointWriter::CheckpointWriter(std::filesystem::path folder, std::int64_t max_shard_bytes)
    : impl_(std::make_unique<Impl>(std::move(folder), std::nullopt, max_shard_bytes)) {}
CheckpointWriter::CheckpointWriter(std::filesystem::path folder, std::filesystem::path scratch,
                                   std::span<const WrittenTensor> written, std::int64_t max_shard_bytes)
    : impl_(std::make_unique<Impl>(std::move(folder), std::move(scratch), max_shard_bytes)) {
  impl_->restore(written);
}
CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::add(std::string_view name, TensorView tensor) {
  impl_->add(name, tensor);
}

void CheckpointWriter::add_linear(std::string_view module, const weights::LinearWeights& weights,
                                  std::string_view format) {
  impl_->add_linear(module, weights, format);
}

std::vector<WrittenTensor> CheckpointWriter::sync() {
  return impl_->sync();
}

void CheckpointWriter::finish(const CheckpointFiles& files) {
  impl_->finish(files);
}

std::int64_t CheckpointWriter::total_bytes() const {
  return impl_->total_bytes();
}

}  // namespace nibble::formats
