#include "core/heap.h"

#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <memory>
#include <vector>

namespace nibble {
namespace {

std::int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::int64_t size = 0;
  std::int64_t resident = 0;
  file >> size >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

TEST(Heap, FreedBuffersBetweenLiveOnesGoBackToTheSystem) {
  constexpr std::size_t kBytes = std::size_t{1} << 20;
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);  // where glibc's own threshold goes once large buffers are freed
  std::vector<std::unique_ptr<char[]>> large;
  std::vector<std::unique_ptr<char[]>> live;  // keep the heap from shrinking at its end
  for (int i = 0; i < 64; ++i) {
    large.push_back(std::make_unique<char[]>(kBytes));
    live.push_back(std::make_unique<char[]>(64));
    std::fill_n(large.back().get(), kBytes, 'x');
  }
  if (::mallinfo2().uordblks < 64 * kBytes) GTEST_SKIP() << "not glibc's allocator: a sanitizer's";
  large.clear();
  const std::int64_t before = resident_bytes();
  return_freed_memory();
  EXPECT_LT(resident_bytes(), before - 48 * static_cast<std::int64_t>(kBytes));
}

}  // namespace
}  // namespace nibble
