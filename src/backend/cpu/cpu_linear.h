#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/packed_part.h"
#include "backend/cpu/workspace.h"

namespace nibble::backend::cpu {

/// Parts packed one by one, run as one parallel loop over all their tiles. `workspace` outlives the linear.
/// Parts that agree on a format share the activation; else the linear states F32 and each part converts it.
std::unique_ptr<Linear> make_cpu_linear(std::vector<weights::LinearPart> parts, const LinearSpec& spec,
                                        const PackOptions& options, Workspace& workspace);

}  // namespace nibble::backend::cpu
