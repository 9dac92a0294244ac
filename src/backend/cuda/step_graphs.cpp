#include "backend/cuda/step_graphs.h"

#include <algorithm>

#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

std::vector<std::int64_t> sizes_up_to(std::int64_t max_sequences) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t size = 1; size < max_sequences; size += size < 4 ? size : size < 8 ? 4 : size < 256 ? 8 : 16) {
    sizes.push_back(size);
  }
  sizes.push_back(max_sequences);
  return sizes;
}

/// Records what `body` enqueues, without executing it.
Graph record(cudaStream_t stream, FunctionRef<void()> body) {
  // Thread-local: what other threads of the program do with CUDA is none of this recording's business.
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    Graph discarded(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream, &graph));
  return Graph(graph);
}

GraphExec instantiate(const Graph& graph, cudaStream_t stream) {
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, graph.get(), 0));
  GraphExec owned(executable);
  check(cudaGraphUpload(executable, stream));  // else the first replay does it
  return owned;
}

}  // namespace

StepGraphs::StepGraphs(const StepLimits& limits, const KvCache& cache)
    : batch_sizes_(sizes_up_to(limits.max_sequences)),
      graphs_(batch_sizes_.size()),
      cache_(&cache),
      max_blocks_per_sequence_(limits.max_blocks_per_sequence) {}

std::int64_t StepGraphs::padded_size(std::int64_t num_sequences) const {
  const auto size = std::ranges::lower_bound(batch_sizes_, num_sequences);
  return size == batch_sizes_.end() ? 0 : *size;
}

void StepGraphs::run(std::int64_t size, std::uint64_t generation, cudaStream_t stream, FunctionRef<void()> body) {
  if (generation != generation_) {
    for (GraphExec& graph : graphs_) graph.reset();
    generation_ = generation;
  }
  const auto found = std::ranges::lower_bound(batch_sizes_, size);
  nibble::check(found != batch_sizes_.end() && *found == size, "cuda graphs: a size that is recorded");
  GraphExec& graph = graphs_[static_cast<std::size_t>(found - batch_sizes_.begin())];
  if (graph != nullptr) {
    check(cudaGraphLaunch(graph.get(), stream));
    return;
  }
  body();
  graph = instantiate(record(stream, body), stream);
}

}  // namespace nibble::backend::cuda
