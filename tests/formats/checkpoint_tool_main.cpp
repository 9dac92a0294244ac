// nibble_checkpoint_tool: what the Python oracle tests need of the formats layer, as raw files they can read with
// numpy.
//
//   list PATH                                 JSON [{"name", "dtype", "shape"}]
//   dump PATH MODULES.json FOLDER             dequantized linears: FOLDER/<module>.f32; MODULES is {module: [out, in]}
//   tensor PATH NAME FILE                     one float tensor as f32
//   side-file PATH NAME                       text of a side file
//   write SPEC.json FOLDER                    a checkpoint from raw linears, see write_checkpoint
//   dequantize-gguf TYPE BLOCKS FILE          blocks of one GGUF type (its number) as f32

#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "formats/checkpoint.h"
#include "formats/gguf_types.h"
#include "formats/quantization_config.h"

namespace nibble::formats {
namespace {

using Arguments = std::vector<std::string>;

void write_raw(const std::filesystem::path& path, TensorView tensor) {
  AtomicFile file(path);
  file.write({static_cast<const std::byte*>(tensor.data()), tensor.size_bytes()});
  file.commit();
}

Tensor read_raw(const std::filesystem::path& path, DType dtype, const Shape& shape) {
  const MappedFile file = MappedFile::open(path);
  Tensor tensor = Tensor::empty(dtype, shape);
  if (file.size_bytes() != tensor.size_bytes()) {
    throw Error(ErrorCode::InvalidArgument,
                fmt::format("{}: {} bytes instead of {}", path.string(), file.size_bytes(), tensor.size_bytes()));
  }
  std::memcpy(tensor.mutable_view().data(), file.bytes().data(), file.size_bytes());
  return tensor;
}

void list(const Arguments& arguments) {
  const auto checkpoint = Checkpoint::open(arguments.at(0));
  Json tensors = Json::array();
  for (const std::string& name : checkpoint->tensor_names()) {
    const TensorView tensor = checkpoint->tensor(name);
    const auto sizes = tensor.shape().sizes();
    tensors.push_back({{"name", name},
                       {"dtype", nibble::name(tensor.dtype())},
                       {"shape", std::vector<std::int64_t>(sizes.begin(), sizes.end())}});
  }
  fmt::print("{}\n", tensors.dump());
}

void dump(const Arguments& arguments) {
  const auto checkpoint = Checkpoint::open(arguments.at(0));
  const Json modules = read_json_file(arguments.at(1));
  for (const auto& [module, shape] : modules.items()) {
    const weights::LinearWeights linear = checkpoint->linear(module, Shape(shape.get<std::vector<std::int64_t>>()));
    write_raw(std::filesystem::path(arguments.at(2)) / (module + ".f32"), weights::dequantize(linear));
  }
}

void tensor(const Arguments& arguments) {
  const auto checkpoint = Checkpoint::open(arguments.at(0));
  write_raw(arguments.at(2), to_dtype(checkpoint->tensor(arguments.at(1)), DType::F32));
}

void side_file(const Arguments& arguments) {
  fmt::print("{}", Checkpoint::open(arguments.at(0))->side_file(arguments.at(1)).value_or(""));
}

/// Codes u8 [out, in], a byte each, as the canonical structs pack them.
Tensor pack_rows(const Tensor& codes, std::int32_t bits) {
  const std::int64_t rows = codes.shape()[0];
  Tensor packed = Tensor::empty(DType::U8, {rows, weights::packed_row_bytes(codes.shape()[1], bits)});
  for (std::int64_t o = 0; o < rows; ++o) {
    weights::pack_codes(codes.matrix<std::uint8_t>().row_span(o), bits, packed.matrix<std::uint8_t>().row_span(o));
  }
  return packed;
}

/// {"module", "out", "in", "bits", "group_size", "codes": u8 [out, in], "scales": f32 [out, groups],
///  "zeros": i16 [out, groups], "g_idx": i32 [in] or null}; the tensors are paths of raw files.
weights::GroupedIntWeights read_grouped_int(const Json& spec) {
  weights::GroupedIntWeights w;
  w.out_features = get<std::int64_t>(spec, "out");
  w.in_features = get<std::int64_t>(spec, "in");
  w.bits = static_cast<std::int32_t>(get<std::int64_t>(spec, "bits"));
  w.group_size = get<std::int64_t>(spec, "group_size");
  const std::int64_t num_groups = (w.in_features + w.group_size - 1) / w.group_size;
  w.codes = pack_rows(read_raw(get<std::string>(spec, "codes"), DType::U8, {w.out_features, w.in_features}), w.bits);
  w.scales = to_dtype(read_raw(get<std::string>(spec, "scales"), DType::F32, {w.out_features, num_groups}), DType::F16);
  w.zeros = read_raw(get<std::string>(spec, "zeros"), DType::I16, {w.out_features, num_groups});
  if (const auto g_idx = get_optional<std::string>(spec, "g_idx")) {
    w.g_idx = read_raw(*g_idx, DType::I32, {w.in_features});
  }
  return w;
}

/// {"module", "out", "in", "bits", "codes": u8 [out, in], "lookup_table": f32 [out, 2^bits], and where it is sparse
///  "rows": i32 [out + 1], "cols": i32 [nnz], "vals": f32 [nnz]}; the tensors are paths of raw files.
weights::CodebookWeights read_codebook(const Json& spec) {
  weights::CodebookWeights w;
  w.out_features = get<std::int64_t>(spec, "out");
  w.in_features = get<std::int64_t>(spec, "in");
  w.bits = static_cast<std::int32_t>(get<std::int64_t>(spec, "bits"));
  w.codes = pack_rows(read_raw(get<std::string>(spec, "codes"), DType::U8, {w.out_features, w.in_features}), w.bits);
  w.lookup_table =
      read_raw(get<std::string>(spec, "lookup_table"), DType::F32, {w.out_features, std::int64_t{1} << w.bits});
  if (const auto rows = get_optional<std::string>(spec, "rows")) {
    const auto nnz = get<std::int64_t>(spec, "nnz");
    w.rows = read_raw(*rows, DType::I32, {w.out_features + 1});
    w.cols = read_raw(get<std::string>(spec, "cols"), DType::I32, {nnz});
    w.vals = read_raw(get<std::string>(spec, "vals"), DType::F32, {nnz});
  }
  return w;
}

/// SPEC: {"format": as formats/registry.cpp names it, "bits", "group_size", "sym", "desc_act", "linears": […]}.
void write_checkpoint(const Arguments& arguments) {
  const Json spec = read_json_file(arguments.at(0));
  const auto format = get<std::string>(spec, "format");
  CheckpointWriter writer(arguments.at(1));
  QuantizationConfig config;
  config.bits = static_cast<std::int32_t>(get<std::int64_t>(spec, "bits"));
  config.group_size = get<std::int64_t>(spec, "group_size");
  config.sym = get<bool>(spec, "sym");
  config.desc_act = get_or(spec, "desc_act", false);
  for (const Json& linear : spec["linears"]) {
    const auto module = get<std::string>(linear, "module");
    const weights::LinearWeights weights =
        linear.contains("lookup_table") ? weights::LinearWeights(read_codebook(linear)) : read_grouped_int(linear);
    writer.add_linear(module, weights, format);
    config.modules.push_back(scheme_of(module, weights, config.group_size));
  }
  writer.finish({Json{{"model_type", "llama"}, {"quantization_config", make_quantization_config(format, config)}}, {}});
}

void dequantize_gguf_file(const Arguments& arguments) {
  const GgufTypeLayout* layout = find_gguf_type(static_cast<std::uint32_t>(std::stoul(arguments.at(0))));
  if (layout == nullptr) throw Error(ErrorCode::InvalidArgument, "unknown GGUF type " + arguments.at(0));
  const MappedFile blocks = MappedFile::open(arguments.at(1));
  const auto num_blocks = static_cast<std::int64_t>(blocks.size_bytes()) / layout->block_bytes;
  Tensor values = Tensor::empty(DType::F32, {num_blocks * layout->block_elements});
  dequantize_gguf(layout->type, blocks.bytes(), values.span<float>());
  write_raw(arguments.at(2), values);
}

int run(const std::string& command, const Arguments& arguments) {
  constexpr std::pair<const char*, void (*)(const Arguments&)> kCommands[] = {
      {"list", list},
      {"dump", dump},
      {"tensor", tensor},
      {"side-file", side_file},
      {"write", write_checkpoint},
      {"dequantize-gguf", dequantize_gguf_file}};
  for (const auto& [name, action] : kCommands) {
    if (name != command) continue;
    action(arguments);
    return 0;
  }
  fmt::print(stderr, "unknown command '{}'\n", command);
  return 2;
}

}  // namespace
}  // namespace nibble::formats

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  try {
    return nibble::formats::run(argv[1], {argv + 2, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
