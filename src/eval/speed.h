#pragma once

#include <cstdint>

#include "engine/engine.h"

namespace nibble::eval {

/// Tokens a second of one greedy request with an empty context, from its first token to its last; EOS does not end it.
/// Errors: Internal with what the engine says where the request fails.
double measure_decode(engine::Engine& engine, std::int64_t num_tokens);

}  // namespace nibble::eval
