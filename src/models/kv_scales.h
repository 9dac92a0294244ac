#pragma once

#include <vector>

#include "formats/checkpoint.h"
#include "models/config.h"

namespace nibble::models {

/// Scales of an 8-bit KV cache: stored key = cast(k / key).
struct KvScales {
  float key = 1;
  float value = 1;
};

/// One pair a layer, as compressed-tensors, AutoFP8, ModelOpt and older llm-compressor releases name them (formats.md
/// §5); empty where no layer has any. A layer without, or with one of the two, has 1.0 there.
/// Errors: Corrupt naming the tensor whose scale is no positive number; Unsupported for scales per head.
std::vector<KvScales> read_kv_scales(const formats::Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace nibble::models
