#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device.h"
#include "core/error.h"

namespace nibble::backend::cuda {
namespace {

bool has_gpu() {
  try {
    return !list_devices().empty();
  } catch (const Error&) {
    return false;
  }
}

/// Has a kernel read where there is no memory, which ends the context. Exits with 0 where all went as it should.
[[noreturn]] void lose_the_device() {
  int failures = 0;
  const auto expect = [&](bool holds, const char* what) {
    if (!holds) ++failures, std::fprintf(stderr, "not so: %s\n", what);
  };
  {
    const auto backend = make_cuda_backend({});
    expect(!backend->fault(), "a fresh device has no fault");
    Activation hidden = backend->make_activation(4, 64, backend->hidden_format());
    Activation delta = backend->make_activation(4, 64, backend->hidden_format());
    const std::vector<float> zeros(4 * 64);
    backend->write({zeros.data(), 4, 64, 64}, hidden);
    backend->write({zeros.data(), 4, 64, 64}, delta);
    delta.values =
        Tensor(Buffer::borrowed(reinterpret_cast<void*>(0x1000), delta.values.size_bytes(), delta.values.device()),
               delta.values.dtype(), delta.values.shape());
    bool throws = false;
    try {
      backend->add(hidden, delta);
      std::vector<float> out(4 * 64);
      backend->read(hidden, {out.data(), 4, 64, 64});
    } catch (const Error& error) {
      throws = error.code() == ErrorCode::Internal;
    }
    expect(throws, "the step reports it");
    expect(backend->fault().has_value(), "the backend knows it");
    bool allocates = true;
    try {
      backend->make_activation(4, 64, backend->hidden_format());
    } catch (const Error&) {
      allocates = false;
    }
    expect(!allocates, "later calls throw");
  }  // and everything goes without a word
  std::exit(failures);
}

TEST(CudaLostDeviceDeathTest, IsReportedAndTakesNothingDownWithIt) {
  if (!has_gpu()) GTEST_SKIP() << "needs an NVIDIA GPU";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(lose_the_device(), testing::ExitedWithCode(0), "");
}

TEST(CudaDevice, SaysWhatAnAllocationAskedFor) {
  if (!has_gpu()) GTEST_SKIP() << "needs an NVIDIA GPU";
  try {
    device_buffer(std::size_t{1} << 45);
    FAIL() << "32 TB were allocated";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::OutOfMemory);
    EXPECT_NE(std::string(error.what()).find("35184372088832 bytes"), std::string::npos) << error.what();
  }
  EXPECT_FALSE(device_fault()) << "the context lives on";
}

TEST(MemoryShare, CountsThisProcessAndItsContextOnly) {
  constexpr std::int64_t kGb = 1'000'000'000;
  const auto memory = [&](std::int64_t used) {
    return Memory{.total_bytes = 80 * kGb, .free_bytes = 80 * kGb - used, .is_devices_own = true, .used_bytes = used};
  };
  EXPECT_EQ(memory_share(memory(10 * kGb), kGb / 2).used_bytes, 10 * kGb);  // alone on the device
  // 20 GB were others', of which all but a context's worth are told apart.
  EXPECT_EQ(memory_share(memory(30 * kGb), 20 * kGb).used_bytes, 10 * kGb + (std::int64_t{1} << 30));
}

}  // namespace
}  // namespace nibble::backend::cuda
