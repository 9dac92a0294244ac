// Every linear kernel of the CUDA backend against float64: sampled rows over all linear shapes of real models and odd
// sizes with 1 to 4096 tokens, six shapes whole, every method. Outputs are poisoned before each run; two runs must
// agree bit for bit, write every element and nothing beyond. In under four minutes on an H100 machine.
//
// usage: nibble_cuda_sweep [--small] [TEXT...]     only linears whose "shape method" holds one of the texts;
//                                                  --small: the odd and the whole shapes, for compute-sanitizer
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "sweep_run.h"

namespace {

using namespace nibble;
using namespace nibble::backend::test;

struct Options {
  bool is_small = false;
  std::vector<std::string> texts;

  bool wants(const std::string& name) const {
    if (texts.empty()) return true;
    for (const std::string& text : texts) {
      if (name.find(text) != std::string::npos) return true;
    }
    return false;
  }
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--small") {
      options.is_small = true;
    } else {
      options.texts.push_back(argument);
    }
  }
  return options;
}

struct Totals {
  std::int64_t num_linears = 0;
  std::int64_t num_products = 0;
  std::int64_t num_faults = 0;
};

void sweep_method(Sweep& sweep, const Method& method, const Options& options, Totals& totals) {
  LinearReport all;
  const auto add = [&](const std::vector<FusedShape>& shapes, const SweepExtent& extent) {
    for (const FusedShape& shape : shapes) {
      const bool divides = shape.in_features % method.group_size == 0;
      if (!divides || !options.wants(shape.name + " " + method.name)) continue;
      const LinearReport report = sweep.run(shape, method, extent);
      ++totals.num_linears;
      all.add(report);
    }
  };
  add(whole_shapes(), options.is_small ? kSmallWhole : kWhole);
  add(odd_shapes(), options.is_small ? kSmallSampled : kSampled);
  if (!options.is_small) add(model_shapes(), kSampled);
  if (!options.is_small && method.name == "f16") add(head_shapes(), kSampledHead);
  totals.num_products += all.num_products;
  totals.num_faults += all.num_faults;
  std::printf("%-18s %6lld products, worst error %.2f of the bound (%s), %lld faults, %.1f s\n", method.name.c_str(),
              static_cast<long long>(all.num_products), all.worst, all.worst_at.c_str(),
              static_cast<long long>(all.num_faults), all.seconds);
  std::fflush(stdout);
}

int sweep_all(const Options& options) {
  Sweep sweep;
  Totals totals;
  for (const Method& method : sweep_methods()) sweep_method(sweep, method, options, totals);
  std::printf("%lld linears, %lld products, %lld faults, %.1f s\n", static_cast<long long>(totals.num_linears),
              static_cast<long long>(totals.num_products), static_cast<long long>(totals.num_faults), sweep.seconds());
  if (totals.num_products == 0) std::fprintf(stderr, "nothing has such a name\n");
  return totals.num_faults == 0 && totals.num_products > 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return sweep_all(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
