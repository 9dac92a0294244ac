// Where a decode step's time goes on a GPU: `bench_cuda_step FOLDER [BATCH...]`, a folder with a config.json, dummy
// weights. Microseconds a step at context 512:
//   replay    steps one behind another, nothing read back: what the device needs, its inputs' upload included
//   in flight the same with greedy sampling, a step launched before the last one's tokens are read
//   in turn   each step waits for its tokens before the next one is launched
//   launch    of these, how long the host takes until it has launched a step and its sampling
// `in flight` less `replay` is what sampling costs; `in turn` less `in flight` is the device's idle time without it.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "models/decoder.h"
#include "models/loader.h"
#include "step_batch.h"

namespace nibble::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSteps = 64;
constexpr std::int64_t kContext = 512;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

class StepTimer {
 public:
  StepTimer(models::Decoder& decoder, std::int64_t batch_size)
      : decoder_(decoder),
        storage_(batch_size, 1, kContext),
        batch_(storage_.batch()),
        cache_(decoder.backend().make_kv_cache(decoder.kv_specs(DType::F16), storage_.num_blocks(),
                                               StepBatch::kBlockSize)),
        rows_(static_cast<std::size_t>(batch_size), backend::SamplingRow{.temperature = 0}),
        sampled_(2, std::vector<backend::SampledToken>(rows_.size())) {
    decoder_.capture(*cache_, batch_size, batch_.block_table_stride);
    for (int i = 0; i < 3; ++i) {
      launch(0);
      decoder_.backend().collect();
    }
  }

  double replay() {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < kSteps; ++i) decoder_.step(batch_, *cache_, batch_.num_tokens());
    launch(0);
    decoder_.backend().collect();
    return microseconds_since(start) / (kSteps + 1);
  }

  double in_flight() {
    launch(0);
    const Clock::time_point start = Clock::now();
    for (std::size_t i = 1; i <= kSteps; ++i) {
      launch(i % 2);
      decoder_.backend().collect();
    }
    const double result = microseconds_since(start) / kSteps;
    decoder_.backend().collect();
    return result;
  }

  /// Also how long a launch takes.
  double in_turn(double& launch_time) {
    launch_time = 0;
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < kSteps; ++i) {
      const Clock::time_point before = Clock::now();
      launch(0);
      launch_time += microseconds_since(before) / kSteps;
      decoder_.backend().collect();
    }
    return microseconds_since(start) / kSteps;
  }

 private:
  void launch(std::size_t flight) {
    backend::Activation& logits = decoder_.step(batch_, *cache_, batch_.num_tokens());
    decoder_.backend().sample(logits, rows_, sampled_[flight]);
  }

  models::Decoder& decoder_;
  StepBatch storage_;
  backend::ForwardBatch batch_;
  std::unique_ptr<backend::KvCache> cache_;
  std::vector<backend::SamplingRow> rows_;
  std::vector<std::vector<backend::SampledToken>> sampled_;
};

int run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_cuda_step FOLDER [BATCH...]\n");
    return 2;
  }
  std::vector<std::int64_t> batch_sizes;
  for (int i = 2; i < argc; ++i) batch_sizes.push_back(std::atoll(argv[i]));
  if (batch_sizes.empty()) batch_sizes = {1, 8, 64};
  const auto backend = backend::make_backend("cuda", {});
  const auto checkpoint = models::make_dummy_checkpoint(argv[1], 0);
  const auto decoder = models::load_decoder(*checkpoint, *backend);
  decoder->reserve(512, 512);
  std::printf("%8s %10s %10s %10s %10s\n", "batch", "replay", "in flight", "in turn", "launch");
  for (const std::int64_t batch_size : batch_sizes) {
    StepTimer timer(*decoder, batch_size);
    const double replay = timer.replay();
    const double in_flight = timer.in_flight();
    double launch = 0;
    const double in_turn = timer.in_turn(launch);
    std::printf("%8lld %10.1f %10.1f %10.1f %10.1f\n", static_cast<long long>(batch_size), replay, in_flight, in_turn,
                launch);
  }
  return 0;
}

}  // namespace
}  // namespace nibble::bench

int main(int argc, char** argv) {
  try {
    return nibble::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_cuda_step: %s\n", error.what());
    return 1;
  }
}
