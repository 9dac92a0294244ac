#include "backend/cpu/cpu_linear.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <utility>

#include "backend/cpu/activation_rows.h"
#include "backend/cpu/pack_grouped_int.h"
#include "backend/host_ops.h"
#include "core/log.h"

namespace nibble::backend::cpu {
namespace {

// Tasks are whole blocks of four tiles, which the dense decode kernel takes together, and about eight a thread, so that
// the last one to finish is not waited for long.
constexpr std::int64_t kTaskTiles = 4;
constexpr std::int64_t kTasksPerThread = 8;

/// Some tiles of one part.
struct Task {
  std::size_t part;
  std::int64_t first_tile;
  std::int64_t num_tiles;
};

std::vector<Task> plan_tasks(const std::vector<std::unique_ptr<PackedPart>>& parts, int num_threads) {
  std::int64_t total = 0;
  for (const auto& part : parts) total += part->num_tiles();
  const std::int64_t blocks = ceil_div(total, kTaskTiles * kTasksPerThread * num_threads);
  const std::int64_t step = std::max<std::int64_t>(1, blocks) * kTaskTiles;
  std::vector<Task> tasks;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    for (std::int64_t tile = 0; tile < parts[p]->num_tiles(); tile += step) {
      tasks.push_back({p, tile, std::min(step, parts[p]->num_tiles() - tile)});
    }
  }
  return tasks;
}

/// One activation group for all integer parts, the largest static scale for all FP8 parts; parts of other kinds or with
/// other permutations cannot share.
bool agree_on_format(std::vector<std::unique_ptr<PackedPart>>& parts) {
  std::int64_t group = 0;
  float static_scale = 0;
  for (const auto& part : parts) {
    group = std::gcd(group, part->activation_group());
    static_scale = std::max(static_scale, part->rounding().static_scale);
  }
  for (const auto& part : parts) {
    if (part->rounding().kind != parts.front()->rounding().kind) return false;
    if ((part->activation_group() == 0) != (parts.front()->activation_group() == 0)) return false;
    if (!std::ranges::equal(part->permutation(), parts.front()->permutation())) return false;
  }
  for (const auto& part : parts) {
    part->set_activation_group(group);
    part->set_static_scale(static_scale);
  }
  return true;
}

class CpuLinear final : public Linear {
 public:
  CpuLinear(std::vector<std::unique_ptr<PackedPart>> parts, std::int64_t in_features, Workspace& workspace)
      : parts_(std::move(parts)), workspace_(&workspace) {
    in_features_ = in_features;
    for (const auto& part : parts_) {
      first_row_.push_back(out_features_);
      out_features_ += part->out_features();
      size_bytes_ += part->size_bytes();
    }
    if (agree_on_format(parts_)) {
      input_format_ = parts_.front()->format();
    } else {
      converted_.resize(parts_.size());
    }
    for (const auto& part : parts_) scratch_bytes_ = std::max(scratch_bytes_, part->scratch_bytes());
    tasks_ = plan_tasks(parts_, workspace.pool.num_threads());
  }

  void forward(const Activation& x, Activation& y) const override {
    check(x.width() == in_features_ && y.width() == out_features_ && x.num_tokens <= y.capacity(),
          "CpuLinear::forward with activations of other shapes");
    y.num_tokens = x.num_tokens;
    std::vector<PartInput> inputs;
    for (std::size_t p = 0; p < parts_.size(); ++p) {
      inputs.push_back(part_input(decoded_input(p, converted_.empty() ? x : converted_input(p, x))));
    }
    workspace_->reserve_scratch(scratch_bytes_);
    const Matrix<float> output = y.values.matrix<float>().block(0, y.num_tokens);
    workspace_->pool.run(static_cast<std::int64_t>(tasks_.size()), [&](std::int64_t i, int thread) {
      const Task& task = tasks_[static_cast<std::size_t>(i)];
      const PackedPart& part = *parts_[task.part];
      part.run(inputs[task.part], task.first_tile, task.num_tiles,
               output.columns(first_row_[task.part], part.out_features()), workspace_->scratch(thread));
    });
  }

 private:
  const Activation& converted_input(std::size_t part, const Activation& x) const {
    Activation& converted = converted_[part];
    if (converted.values.is_empty() || converted.capacity() < x.num_tokens) {
      converted = make_host_activation(x.capacity(), in_features_, parts_[part]->format());
    }
    convert_activation(x, converted, *workspace_);
    return converted;
  }

  /// FP8 activations as the f32 numbers they stand for; others as they are. Parts that share their input share this.
  const Activation& decoded_input(std::size_t part, const Activation& x) const {
    if (!is_fp8(x.format.kind)) return x;
    if (converted_.empty() && part > 0) return decoded_.front();
    if (decoded_.empty()) decoded_.resize(parts_.size());
    Activation& decoded = decoded_[part];
    if (decoded.values.is_empty() || decoded.capacity() < x.num_tokens) {
      decoded = make_host_activation(x.capacity(), in_features_, {});
    }
    decode_fp8_activation(x, decoded, *workspace_);
    return decoded;
  }

  std::vector<std::unique_ptr<PackedPart>> parts_;
  std::vector<std::int64_t> first_row_;  // of each part in y
  std::vector<Task> tasks_;
  Workspace* workspace_;
  std::size_t scratch_bytes_ = 0;
  mutable std::vector<Activation> converted_;  // per part, where the parts disagree; one step at a time runs
  mutable std::vector<Activation> decoded_;    // per part, where inputs are FP8
};

void log_lm_head_at_8_bits(const LinearSpec& spec, std::int64_t group_size) {
  static std::atomic_flag logged;
  if (logged.test_and_set()) return;
  log::info("{}: held at 8 bits in groups of {}, half the bytes that every token reads", spec.name, group_size);
}

std::unique_ptr<PackedPart> pack(const weights::LinearPart& part, const LinearSpec& spec, const PackOptions& options,
                                 ThreadPool& pool) {
  const auto* dense = std::get_if<weights::DenseWeights>(&part.weights);
  if (spec.is_lm_head && options.precision == Precision::Fast && dense != nullptr) {
    if (auto packed = pack_dense_at_8_bits(*dense, part.bias, pool)) {
      log_lm_head_at_8_bits(spec, packed->activation_group());
      return packed;
    }
  }
  return pack_part(part, options, pool);
}

}  // namespace

std::unique_ptr<Linear> make_cpu_linear(std::vector<weights::LinearPart> parts, const LinearSpec& spec,
                                        const PackOptions& options, Workspace& workspace) {
  check(!parts.empty(), "a linear has at least one part");
  const std::int64_t in_features = weights::in_features(parts.front().weights);
  std::vector<std::unique_ptr<PackedPart>> packed;
  for (weights::LinearPart& part : parts) {
    check(weights::in_features(part.weights) == in_features, "parts of a fused linear share their input");
    packed.push_back(pack(part, spec, options, workspace.pool));
    part = {};  // at most one part exists twice
  }
  return std::make_unique<CpuLinear>(std::move(packed), in_features, workspace);
}

}  // namespace nibble::backend::cpu
