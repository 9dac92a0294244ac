#include "server/sse.h"

namespace nibble::server {

std::string sse_event(const Json& json) {
  return "data: " + dump_json(json) + "\n\n";
}

std::string sse_done() {
  return "data: [DONE]\n\n";
}

std::string dump_json(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace nibble::server
