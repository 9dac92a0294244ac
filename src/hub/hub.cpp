#include "hub/hub.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <system_error>

#include "core/error.h"
#include "core/file.h"

namespace nibble::hub {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxPartLength = 96;  // the Hub's own limit

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
}

bool is_revision_part(std::string_view part) {
  if (part.empty() || part.size() > kMaxPartLength || !std::ranges::all_of(part, is_name_character)) return false;
  const auto is_edge = [](char c) { return c == '-' || c == '.'; };
  return !is_edge(part.front()) && !is_edge(part.back()) && part.find("..") == std::string_view::npos;
}

/// "--" would be taken for the '/' of the cache's folder names.
bool is_name_part(std::string_view part) {
  return is_revision_part(part) && part.find("--") == std::string_view::npos;
}

bool is_revision(std::string_view revision) {
  while (true) {
    const std::size_t slash = revision.find('/');
    if (!is_revision_part(revision.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    revision.remove_prefix(slash + 1);
  }
}

bool is_commit(std::string_view text) {
  return text.size() == 40 &&
         std::ranges::all_of(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::optional<std::string> environment(const char* variable) {
  const char* value = std::getenv(variable);  // NOLINT(concurrency-mt-unsafe): nothing of nibble sets variables
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

/// The commit that a branch or tag pointed at when it was downloaded; a commit names itself.
std::optional<std::string> find_commit(const fs::path& repository, const std::string& revision) {
  if (is_commit(revision)) return revision;
  const fs::path ref = repository / "refs" / revision;
  std::error_code error;
  if (!fs::is_regular_file(ref, error)) return std::nullopt;
  std::string commit = read_text_file(ref, 1024);
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r')) commit.pop_back();
  if (!is_commit(commit)) {
    throw Error(ErrorCode::Corrupt,
                fmt::format("{}: no 40-digit commit; delete the file and download the model again", ref.string()));
  }
  return commit;
}

/// A name as a person sees it in a message: control characters out, long ones cut.
std::string printable(std::string_view text) {
  constexpr std::size_t kMaxShown = 200;
  std::string shown(text.substr(0, kMaxShown));
  std::ranges::replace_if(shown, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return text.size() > kMaxShown ? shown + "…" : shown;
}

}  // namespace

std::filesystem::path resolve_model(std::string_view name_or_path) {
  if (name_or_path.empty()) {
    throw Error(ErrorCode::InvalidArgument, "the model is empty: give a folder, a GGUF file or a Hub name");
  }
  std::error_code error;
  if (fs::exists(fs::path(name_or_path), error)) return name_or_path;
  const std::string shown = printable(name_or_path);
  const auto name = parse_hub_name(name_or_path);
  if (!name) {
    throw Error(ErrorCode::NotFound,
                fmt::format("{}: no such folder or file (and not a Hub name like org/name)", shown));
  }
  const fs::path cache = cache_folder();
  if (auto folder = find_in_cache(cache, *name)) return *folder;
  throw Error(ErrorCode::NotFound,
              fmt::format("{}: neither a local folder nor in the Hugging Face cache {}; nibble does not download: "
                          "run `huggingface-cli download {}/{} --revision {}` or give a local folder",
                          shown, cache.string(), name->org, name->name, name->revision));
}

std::optional<HubName> parse_hub_name(std::string_view text) {
  HubName result;
  if (const std::size_t at = text.find('@'); at != std::string_view::npos) {
    result.revision = text.substr(at + 1);
    text = text.substr(0, at);
    if (!is_revision(result.revision)) return std::nullopt;
  }
  const std::size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  result.org = text.substr(0, slash);
  result.name = text.substr(slash + 1);
  if (!is_name_part(result.org) || !is_name_part(result.name)) return std::nullopt;
  return result;
}

std::filesystem::path cache_folder() {
  if (const auto folder = environment("HF_HUB_CACHE")) return *folder;
  if (const auto folder = environment("HUGGINGFACE_HUB_CACHE")) return *folder;
  if (const auto home = environment("HF_HOME")) return fs::path(*home) / "hub";
  const auto xdg = environment("XDG_CACHE_HOME");
  const fs::path base = xdg ? fs::path(*xdg) : fs::path(environment("HOME").value_or("/")) / ".cache";
  return base / "huggingface" / "hub";
}

std::optional<std::filesystem::path> find_in_cache(const std::filesystem::path& cache, const HubName& name) {
  const fs::path repository = cache / fmt::format("models--{}--{}", name.org, name.name);
  const auto commit = find_commit(repository, name.revision);
  if (!commit) return std::nullopt;
  fs::path snapshot = repository / "snapshots" / *commit;
  std::error_code error;
  if (!fs::is_directory(snapshot, error)) return std::nullopt;
  return snapshot;
}

}  // namespace nibble::hub
