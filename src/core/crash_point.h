#pragma once

namespace nibble {

/// A moment at which a crash must do no harm. With NIBBLE_CRASH_AT=N in the environment the N-th one that the process
/// reaches kills it as `kill -9` would, so that a test can stop a run everywhere; otherwise it counts and nothing more.
void crash_point();

}  // namespace nibble
