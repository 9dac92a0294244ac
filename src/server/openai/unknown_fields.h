#pragma once

#include <cstddef>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "core/json.h"

namespace nibble::server::openai {

/// Names of request fields that no endpoint reads: ignored, as the API asks, but each is logged once at debug level, so
/// that a misspelt field can be found. Any thread.
class UnknownFields {
 public:
  void report(const Json& body);
  /// What was reported so far, shortened for the log.
  std::vector<std::string> names() const;

 private:
  /// Clients choose the names: neither memory nor the log may grow with them.
  static constexpr std::size_t kMaxNames = 256;

  mutable std::mutex mutex_;
  std::set<std::string> names_;
};

}  // namespace nibble::server::openai
