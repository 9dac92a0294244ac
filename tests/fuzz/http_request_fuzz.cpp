// Bytes of a connection: requests one after the other, as HttpConnection feeds them. However the bytes are cut, the
// same requests must come out. (Not the same failures: Beast looks into a header that comes in pieces only once it is
// complete or too long.)
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "server/http_parser.h"

namespace nibble::server {
namespace {

std::vector<std::string> parse_all(std::string_view bytes, std::size_t piece_bytes) {
  HttpOptions options;
  options.max_header_bytes = 4096;
  options.max_body_bytes = 4096;
  std::vector<std::string> requests;
  std::optional<HttpParser> parser;
  std::string input;
  while (!bytes.empty()) {
    const std::size_t size = std::min(piece_bytes, bytes.size());
    input += bytes.substr(0, size);
    bytes.remove_prefix(size);
    while (!input.empty()) {
      if (!parser) parser.emplace(options);
      input.erase(0, parser->feed(input));
      if (parser->state() == HttpParser::State::Failed) return requests;
      if (parser->state() != HttpParser::State::Done) break;
      HttpRequest request = parser->take_request();
      std::string text = request.method + ' ' + request.path + '?' + request.query + '\n';
      for (const HttpHeader& field : request.headers) text += field.name + ": " + field.value + '\n';
      requests.push_back(text + request.body);
      parser.reset();
    }
  }
  return requests;
}

}  // namespace
}  // namespace nibble::server

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  const std::string_view bytes(reinterpret_cast<const char*>(input), size_bytes);
  const auto whole = nibble::server::parse_all(bytes, bytes.size());
  if (whole != nibble::server::parse_all(bytes, 1)) std::abort();
  if (whole != nibble::server::parse_all(bytes, 7)) std::abort();
  return 0;
}
