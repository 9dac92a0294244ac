#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "core/error.h"
#include "core/json.h"
#include "server/http.h"

namespace nibble::server::openai {

/// An error that the API words itself: status, OpenAI's error type and the parameter at fault.
class RequestError : public Error {
 public:
  RequestError(int status, std::string type, std::string message, std::string param = {});

  int status() const { return status_; }
  const std::string& type() const { return type_; }
  const std::string& param() const { return param_; }  // "" where none is at fault

 private:
  int status_;
  std::string type_;
  std::string param_;
};

/// 400, type "BadRequestError": values that cannot be, fields that nibble does not serve.
RequestError bad_request(std::string message, std::string param = {});
/// 400, type "Bad Request": a body of the wrong form (what pydantic refuses in vLLM).
RequestError malformed(std::string message, std::string param = {});
/// 404, type "NotFoundError".
RequestError not_found(std::string message, std::string param = {});
/// 503: draining or overloaded.
RequestError unavailable(std::string message);

/// {"error": {"message", "type", "param", "code"}}; the message is cut to a bounded length.
Json error_json(const std::exception& error);
/// The same as an answer, with its status.
HttpResponse error_response(const std::exception& error);
/// For HTTP's own failures, which have only a status: the type is the status's name.
HttpResponse http_error(int status, std::string message);

}  // namespace nibble::server::openai
