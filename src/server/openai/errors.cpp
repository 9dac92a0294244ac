#include "server/openai/errors.h"

#include <utility>

#include "server/sse.h"

namespace nibble::server::openai {
namespace {

/// A message may quote the request; it must not become an amplifier.
constexpr std::size_t kMaxMessageBytes = 2'000;

struct Description {
  int status;
  std::string type;
  std::string message;
  std::string param;
};

std::string type_of_status(int status) {
  switch (status) {
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 500: return "InternalServerError";
    case 501: return "NotImplementedError";
    case 503: return "ServiceUnavailableError";
    default: return "Bad Request";
  }
}

ErrorCode code_of_status(int status) {
  if (status == 404) return ErrorCode::NotFound;
  if (status == 503) return ErrorCode::Unavailable;
  return status >= 500 ? ErrorCode::Internal : ErrorCode::InvalidArgument;
}

Description describe(const std::exception& error) {
  if (const auto* request_error = dynamic_cast<const RequestError*>(&error)) {
    return {request_error->status(), request_error->type(), request_error->what(), request_error->param()};
  }
  const auto* known = dynamic_cast<const Error*>(&error);
  if (known == nullptr) return {500, "InternalServerError", "Internal server error.", ""};
  switch (known->code()) {
    case ErrorCode::InvalidArgument:
    case ErrorCode::Unsupported:
    case ErrorCode::Corrupt: return {400, "BadRequestError", known->what(), ""};
    case ErrorCode::NotFound: return {404, "NotFoundError", known->what(), ""};
    case ErrorCode::OutOfMemory:
    case ErrorCode::Unavailable: return {503, "ServiceUnavailableError", known->what(), ""};
    case ErrorCode::Internal: break;
  }
  return {500, "InternalServerError", known->what(), ""};
}

Json to_json(Description description) {
  if (description.message.size() > kMaxMessageBytes) {
    description.message.resize(kMaxMessageBytes);
    description.message += "…";
  }
  return {{"error",
           {{"message", std::move(description.message)},
            {"type", std::move(description.type)},
            {"param", description.param.empty() ? Json() : Json(description.param)},
            {"code", description.status}}}};
}

HttpResponse to_response(Description description) {
  HttpResponse response;
  response.status = description.status;
  response.body = dump_json(to_json(std::move(description)));
  return response;
}

}  // namespace

RequestError::RequestError(int status, std::string type, std::string message, std::string param)
    : Error(code_of_status(status), std::move(message)),
      status_(status),
      type_(std::move(type)),
      param_(std::move(param)) {}

RequestError bad_request(std::string message, std::string param) {
  return {400, "BadRequestError", std::move(message), std::move(param)};
}

RequestError malformed(std::string message, std::string param) {
  return {400, "Bad Request", std::move(message), std::move(param)};
}

RequestError not_found(std::string message, std::string param) {
  return {404, "NotFoundError", std::move(message), std::move(param)};
}

RequestError unavailable(std::string message) {
  return {503, "ServiceUnavailableError", std::move(message)};
}

Json error_json(const std::exception& error) {
  return to_json(describe(error));
}

HttpResponse error_response(const std::exception& error) {
  return to_response(describe(error));
}

HttpResponse http_error(int status, std::string message) {
  return to_response({status, type_of_status(status), std::move(message), ""});
}

}  // namespace nibble::server::openai
