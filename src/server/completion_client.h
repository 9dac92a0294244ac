#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/json.h"

namespace nibble::server {

/// A piece of a stream that brings text or ends it.
struct CompletionChunk {
  std::chrono::steady_clock::time_point arrived;
  std::int64_t num_tokens =
      1;  // text is held back until characters are complete; from the running usage, where it has one
};

/// What came back for one streamed completion.
struct StreamedCompletion {
  std::chrono::steady_clock::time_point sent;
  std::vector<CompletionChunk> chunks;
  std::int64_t num_prompt_tokens = 0;  // as the usage says
  std::int64_t num_output_tokens = 0;
};

/// A client of an OpenAI-compatible API over plain HTTP, one request at a time on a connection that it keeps. Used by
/// one thread; blocks.
class CompletionClient {
 public:
  /// `base_url`: "http://HOST[:PORT][/PREFIX]". Errors: InvalidArgument, naming what is wrong with it.
  CompletionClient(const std::string& base_url, std::chrono::seconds timeout);
  ~CompletionClient();
  CompletionClient(const CompletionClient&) = delete;
  CompletionClient& operator=(const CompletionClient&) = delete;

  /// GET `path`, answered with JSON. Errors: Unavailable for a server that does not answer, or not with status 200.
  Json get(const std::string& path);
  /// POST `body`, which asks for a stream with its usage, to `path`. Errors: as get; also where the stream breaks off
  /// or brings an error or no usage.
  StreamedCompletion stream(const std::string& path, const std::string& body);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble::server
