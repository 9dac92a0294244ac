#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdio>
#include <string>
#include <string_view>

// The same tests for every SIMD target: `--simd_target=AVX2` hides the better ones. Exit code 77 where this machine has
// no such target, which ctest counts as skipped.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    constexpr std::string_view kFlag = "--simd_target=";
    const std::string_view argument = argv[i];
    if (!argument.starts_with(kFlag)) continue;
    const std::string_view name = argument.substr(kFlag.size());
    std::int64_t chosen = 0;
    for (std::int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
      const std::int64_t target = targets & -targets;
      if (hwy::TargetName(target) == name) chosen = target;
    }
    if (chosen == 0) {
      std::printf("this machine has no %s\n", argv[i] + kFlag.size());
      return 77;
    }
    hwy::SetSupportedTargetsForTest(chosen);
    hwy::GetChosenTarget().Update(chosen);
  }
  return RUN_ALL_TESTS();
}
