#include <fmt/format.h>

#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <utility>

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
  Impl(std::filesystem::path folder, std::int64_t max_shard_bytes)
      : folder_(std::move(folder)), max_shard_bytes_(max_shard_bytes) {
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

  void add(std::string_view name, TensorView tensor) {
    check(!finished_, "CheckpointWriter::add after finish");
    if (!names_.emplace(name).second) {
      throw Error(ErrorCode::InvalidArgument, fmt::format("{}: tensor {} is written twice", folder_.string(), name));
    }
    const auto size = static_cast<std::int64_t>(tensor.size_bytes());
    if (open_ && (open_->data_bytes() + size > max_shard_bytes_ || !open_->has_room_for(name, tensor.dtype()))) {
      close_shard();
    }
    if (!open_) open_.emplace(folder_ / fmt::format("model-{:05}.safetensors", shards_.size() + 1));
    open_->add(name, tensor);
    total_bytes_ += size;
  }

  void add_linear(std::string_view module, const weights::LinearWeights& weights, std::string_view format) {
    try {
      for (const NamedTensor& named : tensors_of(weights, format))
        add(fmt::format("{}.{}", module, named.suffix), named.tensor);
    } catch (const Error& error) {
      throw error.in(module);
    }
  }

  void finish(const CheckpointFiles& files) {
    check(!finished_, "CheckpointWriter::finish twice");
    if (names_.empty()) throw Error(ErrorCode::InvalidArgument, folder_.string() + ": a checkpoint without tensors");
    check_complete_sets();
    if (open_) close_shard();
    name_shards();
    for (const auto& [name, text] : files.texts) {
      check(is_plain_file_name(name), "side file with a path");
      write_text_file(folder_ / name, text);
    }
    write_json_file(folder_ / "config.json", files.config);  // last: only with it does the folder look like a model
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

  void close_shard() {
    open_->seal();
    shards_.push_back(std::move(*open_));
    open_.reset();
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

  void name_shards() {
    if (shards_.size() == 1) {
      shards_.front().commit_as(folder_ / "model.safetensors");
      return;
    }
    Json weight_map = Json::object();
    auto& entries = weight_map.get_ref<Json::object_t&>();
    for (std::size_t i = 0; i < shards_.size(); ++i) {
      const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards_.size());
      // emplace would search every earlier key; names are unique already.
      for (const std::string& tensor : shards_[i].names())
        entries.std::vector<Json::object_t::value_type>::emplace_back(tensor, name);
      shards_[i].commit_as(folder_ / name);
    }
    write_json_file(folder_ / "model.safetensors.index.json",
                    {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", std::move(weight_map)}});
  }

  std::filesystem::path folder_;
  std::int64_t max_shard_bytes_;
  std::optional<SafetensorsShard> open_;
  std::vector<SafetensorsShard> shards_;
  std::set<std::string, std::less<>> names_;
  std::int64_t total_bytes_ = 0;
  bool finished_ = false;
};

CheckpointWriter::CheckpointWriter(std::filesystem::path folder, std::int64_t max_shard_bytes)
    : impl_(std::make_unique<Impl>(std::move(folder), max_shard_bytes)) {}
CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::add(std::string_view name, TensorView tensor) {
  impl_->add(name, tensor);
}

void CheckpointWriter::add_linear(std::string_view module, const weights::LinearWeights& weights,
                                  std::string_view format) {
  impl_->add_linear(module, weights, format);
}

void CheckpointWriter::finish(const CheckpointFiles& files) {
  impl_->finish(files);
}

std::int64_t CheckpointWriter::total_bytes() const {
  return impl_->total_bytes();
}

}  // namespace nibble::formats
