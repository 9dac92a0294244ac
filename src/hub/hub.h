#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

/// Names → local files. Nothing is downloaded here: a model is what lies on this machine.
namespace nibble::hub {

/// A name on the Hugging Face Hub: "org/name" or "org/name@revision".
struct HubName {
  std::string org;
  std::string name;
  std::string revision = "main";  // branch, tag or 40-digit commit
};

/// The name in `text`, or nothing where it does not have the Hub's form: two parts of at most 96 letters, digits,
/// '-', '_', '.' that do not begin or end with '-' or '.' and hold no ".." or "--"; a revision of the same letters
/// and '/', whose parts obey the same rule but for "--".
std::optional<HubName> parse_hub_name(std::string_view text);

/// $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub, where HF_HOME is $XDG_CACHE_HOME/huggingface or
/// ~/.cache/huggingface. Not checked to exist.
std::filesystem::path cache_folder();

/// The snapshot of `name` in a cache of huggingface_hub's layout
/// (models--org--name/{refs/<revision>, snapshots/<commit>/…}), or nothing where it is not there.
/// Errors: Corrupt where refs/<revision> does not hold a commit.
std::optional<std::filesystem::path> find_in_cache(const std::filesystem::path& cache, const HubName& name);

/// The folder or GGUF file that `name_or_path` means: a path that exists wins, else a Hub name in the cache.
/// Errors: NotFound, saying where was looked and how to get it; InvalidArgument for "".
std::filesystem::path resolve_model(std::string_view name_or_path);

}  // namespace nibble::hub
