#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/tensor.h"
#include "formats/gguf_types.h"

/// GGUF v2 and v3, little-endian (formats.md §8; files of llama.cpp and gguf-py 0.19.0 were checked). Everything that
/// a file says is checked against the file's size before it is used.
namespace nibble::formats {

/// An array of metadata: strings, or numbers (booleans are 0 and 1). Strings borrow from the file.
struct GgufArray {
  std::vector<std::string_view> strings;
  std::vector<double> numbers;
};

/// f32 stays apart from f64, so that it can be printed as the shortest decimal that reads back as the same f32.
using GgufValue = std::variant<bool, std::int64_t, float, double, std::string_view, GgufArray>;

struct GgufTensor {
  GgufType type;
  Shape shape;                       // Hugging Face's order, outermost first: [out, in]
  std::span<const std::byte> bytes;  // in the file
};

/// The content of a file; borrows from its bytes.
class GgufFile {
 public:
  /// Errors: Corrupt; Unsupported for another version, byte order or tensor type.
  static GgufFile parse(std::span<const std::byte> file);

  const std::map<std::string_view, GgufValue>& metadata() const { return metadata_; }
  const std::map<std::string_view, GgufTensor>& tensors() const { return tensors_; }

  /// Metadata by key; nothing where it is absent. Errors: Corrupt for a value of another type.
  std::optional<std::string_view> string(std::string_view key) const;
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  /// An f32 becomes the double whose shortest decimal is the f32's: 1e-05, not 9.99999974e-06.
  std::optional<double> number(std::string_view key) const;
  const GgufArray* array(std::string_view key) const;

 private:
  std::map<std::string_view, GgufValue> metadata_;
  std::map<std::string_view, GgufTensor> tensors_;
};

}  // namespace nibble::formats
