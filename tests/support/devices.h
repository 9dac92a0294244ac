#pragma once

#include <cstdlib>
#include <string>
#include <vector>

namespace nibble::testing_support {

/// Devices that tests of the whole engine run on, as in --device: NIBBLE_TEST_DEVICE alone where it is set (cuda, on a
/// machine with a GPU), else the two that every machine has.
inline std::vector<std::string> test_devices() {
  const char* device = std::getenv("NIBBLE_TEST_DEVICE");
  if (device != nullptr) return {device};
  return {"reference", "cpu"};
}

}  // namespace nibble::testing_support
