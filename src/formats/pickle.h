#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace nibble::formats {

/// A tensor as a pickle describes it: a part of a storage, whose bytes lie elsewhere.
struct PickledTensor {
  std::string storage_type;       // "FloatStorage"
  std::string storage_key;        // "0": the file data/0 of the archive
  std::int64_t storage_size = 0;  // elements
  std::int64_t offset = 0;        // elements
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;  // elements
};

/// The tensors of a state dict, by name, from data.pkl as torch.save writes it (pickle protocol 2; torch 2.15 and the
/// format of 1.6 were checked). A pickle is a program; this machine runs none of it but what builds dicts of tensors:
/// collections.OrderedDict, torch._utils._rebuild_tensor_v2 and _rebuild_parameter and torch's storages are known by
/// name and called never. Values that are no tensors, as SqueezeLLM's sparse_threshold, are left out.
/// Errors: Unsupported naming any other global or instruction; Corrupt for a program that does not hold together.
std::map<std::string, PickledTensor, std::less<>> read_state_dict(std::span<const std::byte> pickle);

}  // namespace nibble::formats
