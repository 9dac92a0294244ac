#include "quantize/journal_entry.h"

#include <fmt/format.h>

#include <span>
#include <utility>

namespace nibble::quantize {
namespace {

Json to_json(const formats::WrittenTensor& tensor) {
  Json sizes = Json::array();
  for (const std::int64_t size : tensor.shape.sizes()) sizes.push_back(size);
  return {{"name", tensor.name},
          {"dtype", std::string(nibble::name(tensor.dtype))},
          {"shape", std::move(sizes)},
          {"shard", tensor.shard}};
}

formats::WrittenTensor written_tensor_from_json(const Json& json) {
  formats::WrittenTensor tensor;
  tensor.name = get<std::string>(json, "name");
  const auto dtype = dtype_from_name(get<std::string>(json, "dtype"));
  if (!dtype) throw Error(ErrorCode::Corrupt, tensor.name + ": dtype " + json["dtype"].dump() + " is unknown");
  tensor.dtype = *dtype;
  std::vector<std::int64_t> sizes;
  for (const Json& size : json.at("shape")) sizes.push_back(size.get<std::int64_t>());
  tensor.shape = Shape(std::span<const std::int64_t>(sizes));
  tensor.shard = get<std::int64_t>(json, "shard");
  return tensor;
}

Json to_json(const formats::ModuleScheme& scheme) {
  return {{"module", scheme.module},
          {"kind", static_cast<int>(scheme.kind)},
          {"bits", scheme.bits},
          {"group_size", scheme.group_size},
          {"sym", scheme.sym},
          {"desc_act", scheme.desc_act},
          {"static_activations", scheme.static_activations}};
}

formats::ModuleScheme module_scheme_from_json(const Json& json) {
  using Kind = formats::ModuleScheme::Kind;
  formats::ModuleScheme scheme;
  scheme.module = get<std::string>(json, "module");
  const auto kind = get<std::int64_t>(json, "kind");
  if (kind < 0 || kind > static_cast<int>(Kind::Codebook)) throw Error(ErrorCode::Corrupt, "kind: out of range");
  scheme.kind = static_cast<Kind>(kind);
  scheme.bits = static_cast<std::int32_t>(get<std::int64_t>(json, "bits"));
  scheme.group_size = get<std::int64_t>(json, "group_size");
  scheme.sym = get<bool>(json, "sym");
  scheme.desc_act = get<bool>(json, "desc_act");
  scheme.static_activations = get<bool>(json, "static_activations");
  return scheme;
}

}  // namespace

Json to_json(const JournalEntry& entry) {
  Json json = Json::object();
  if (!entry.block.empty()) json["block"] = entry.block;
  if (entry.is_last) json["is_last"] = true;
  if (!entry.saved_states.empty()) json["saved_states"] = entry.saved_states;
  if (!entry.dropped_states.empty()) json["dropped_states"] = entry.dropped_states;
  for (const formats::ModuleScheme& scheme : entry.schemes) json["schemes"].push_back(to_json(scheme));
  for (const LayerReport& layer : entry.layers) json["layers"].push_back(to_json(layer));
  for (const formats::WrittenTensor& tensor : entry.tensors) json["tensors"].push_back(to_json(tensor));
  return json;
}

JournalEntry journal_entry_from_json(const Json& json) try {
  JournalEntry entry;
  entry.block = get_or<std::string>(json, "block", "");
  entry.is_last = get_or<bool>(json, "is_last", false);
  entry.saved_states = get_or<std::vector<std::string>>(json, "saved_states", {});
  entry.dropped_states = get_or<std::vector<std::string>>(json, "dropped_states", {});
  if (json.contains("schemes")) {
    for (const Json& scheme : json["schemes"]) entry.schemes.push_back(module_scheme_from_json(scheme));
  }
  if (json.contains("layers")) {
    for (const Json& layer : json["layers"]) entry.layers.push_back(layer_report_from_json(layer));
  }
  if (json.contains("tensors")) {
    for (const Json& tensor : json["tensors"]) entry.tensors.push_back(written_tensor_from_json(tensor));
  }
  return entry;
} catch (const Json::exception& error) {
  throw Error(ErrorCode::Corrupt, error.what());
}

}  // namespace nibble::quantize
