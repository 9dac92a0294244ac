#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

#include "core/error.h"
#include "core/file.h"

namespace nibble::testing_support {

/// A folder that is gone when the test ends.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "nibble-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw Error(ErrorCode::Unavailable, "mkdtemp failed");
    path_ = pattern;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A folder for --load-format dummy: a two-layer Llama of 64 hidden units over bytes, with `extra` merged into
/// config.json.
inline void write_tiny_config(const std::filesystem::path& folder, const std::string& extra = "") {
  write_text_file(folder / "config.json",
                  R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
  "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "vocab_size": 256, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
  "torch_dtype": "float16")" +
                      extra + "}\n");
}

}  // namespace nibble::testing_support
