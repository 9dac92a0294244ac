#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "core/log.h"
#include "fake_engine.h"
#include "server/routes.h"
#include "test_client.h"

namespace nibble::server {

/// A server over a FakeEngine on a free port of 127.0.0.1.
class ServerTest : public testing::Test {
 protected:
  void SetUp() override { log::set_level(log::Level::Off); }

  void start(FakeEngine::Options engine_options = {}) {
    http.host = "127.0.0.1";
    http.port = 0;
    if (api.served_model_names.empty()) api.served_model_names = {"fake", "alias"};
    api.model_root = "/models/fake";
    api.version = "1.2.3";
    engine = std::make_unique<FakeEngine>(std::move(engine_options));
    server = std::make_unique<ApiServer>(http, access);
    server->start(*engine, std::make_unique<FakeChatTemplate>(), api);
  }

  void TearDown() override {
    if (!server) return;
    server->begin_drain();
    engine->drain(0);
    server->shut_down(std::chrono::milliseconds(100));
  }

  std::uint16_t port() const { return server->port(); }

  /// The answer to one request on its own connection.
  Reply post(std::string_view path, const Json& body, std::string_view headers = "") const {
    return TestClient(port()).post(path, body, headers);
  }
  Reply get(std::string_view path, std::string_view headers = "") const {
    return TestClient(port()).get(path, headers);
  }

  HttpOptions http;
  AccessOptions access;
  openai::ApiOptions api;
  std::unique_ptr<FakeEngine> engine;
  std::unique_ptr<ApiServer> server;
};

}  // namespace nibble::server
