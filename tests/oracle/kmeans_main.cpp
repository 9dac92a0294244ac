// usage: nibble_kmeans VALUES.f32 WEIGHTS.f32 NUM_ROWS NUM_CENTERS NUM_THREADS CENTERS.f32
//
// Weighted k-means of each of NUM_ROWS rows; VALUES and WEIGHTS hold [NUM_ROWS, n] f32. Writes the centers
// [NUM_ROWS, NUM_CENTERS] and prints the CPU seconds of the computation.
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <exception>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/tensor.h"
#include "quantize/kmeans.h"

namespace {

using namespace nibble;

Matrix<const float> as_rows(const MappedFile& file, std::int64_t num_rows) {
  const auto num_values = static_cast<std::int64_t>(file.size_bytes() / sizeof(float));
  return {reinterpret_cast<const float*>(file.bytes().data()), num_rows, num_values / num_rows, num_values / num_rows};
}

void run(const std::vector<std::string>& arguments) {
  const MappedFile values = MappedFile::open(arguments.at(0));
  const MappedFile weights = MappedFile::open(arguments.at(1));
  const std::int64_t num_rows = std::stol(arguments.at(2));
  Tensor centers = Tensor::zeros(DType::F32, {num_rows, std::stol(arguments.at(3))});
  ThreadPool pool(std::stoi(arguments.at(4)));
  const std::clock_t start = std::clock();
  quantize::kmeans_rows(as_rows(values, num_rows), as_rows(weights, num_rows), centers.matrix<float>(), pool);
  std::printf("%.6f\n", static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  AtomicFile file(arguments.at(5));
  file.write(std::as_bytes(centers.span<float>()));
  file.commit();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  try {
    run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
