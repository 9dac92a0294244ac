#pragma once

#include <string>

#include "server_fixture.h"

namespace nibble::server {

/// The API's contract: defaults, checks, error texts, the shapes of answers and streams.
class OpenAi : public ServerTest {
 protected:
  Reply complete(const Json& body) const { return post("/v1/completions", body); }
  Reply chat(Json body) const {
    if (!body.contains("messages")) body["messages"] = {{{"role", "user"}, {"content", "hi"}}};
    return post("/v1/chat/completions", body);
  }
  std::string error_of(const Reply& reply) const {
    EXPECT_EQ(reply.status, 400) << reply.body;
    return reply.json()["error"]["message"];
  }
};

}  // namespace nibble::server
