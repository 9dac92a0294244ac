// POST /tokenize, /detokenize
#include <utility>

#include "server/openai/chat_prompt.h"
#include "server/openai/endpoints.h"
#include "server/openai/errors.h"
#include "server/openai/fields.h"
#include "server/sse.h"

namespace nibble::server::openai {
namespace {

std::vector<std::int32_t> tokens_of(const Json& body, const Serving& serving) {
  if (body.contains("messages")) {
    const ChatPrompt prompt = render_chat(body, serving);
    return serving.tokenizer().encode(prompt.text, prompt.add_special_tokens);
  }
  const auto prompt = field<std::string>(body, "prompt");
  if (!prompt) throw malformed("prompt or messages is required.", "prompt");
  return serving.tokenizer().encode(*prompt, field_or<bool>(body, "add_special_tokens", true));
}

}  // namespace

void serve_tokenize(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  const Json body = parse_body(exchange->request());
  check_model(body, serving);
  const std::vector<std::int32_t> tokens = tokens_of(body, serving);
  Json answer = {{"count", tokens.size()},
                 {"max_model_len", serving.engine.max_model_len()},
                 {"tokens", tokens},
                 {"token_strs", nullptr}};
  if (field_or<bool>(body, "return_token_strs", false)) {
    Json texts = Json::array();
    for (const std::int32_t token : tokens) texts.push_back(serving.tokenizer().id_to_token(token));
    answer["token_strs"] = std::move(texts);
  }
  HttpResponse response;
  response.body = dump_json(answer);
  exchange->respond(std::move(response));
}

void serve_detokenize(Serving& serving, const std::shared_ptr<Exchange>& exchange) {
  const Json body = parse_body(exchange->request());
  check_model(body, serving);
  const auto tokens = body.find("tokens");
  if (tokens == body.end() || !tokens->is_array())
    throw malformed("tokens: an array of integers is required.", "tokens");
  const auto ids = token_ids(*tokens, "tokens", serving.vocab_size());
  HttpResponse response;
  response.body = dump_json({{"prompt", serving.tokenizer().decode(ids, /*skip_special_tokens=*/false)}});
  exchange->respond(std::move(response));
}

}  // namespace nibble::server::openai
