#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace nibble {

/// Runs `action` and expects nibble::Error with this code whose message contains `part`.
template <class Action>
void expect_error(ErrorCode code, const std::string& part, Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(name(error.code()), name(code)) << error.what();
    EXPECT_THAT(error.what(), testing::HasSubstr(part));
    return;
  }
  ADD_FAILURE() << "no error; expected " << name(code) << " with '" << part << "'";
}

}  // namespace nibble
