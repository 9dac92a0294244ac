// For the oracle tests: nibble_tokenize TOKENIZER_JSON reads a JSON object a line on stdin and answers with one.
//   {"text": …, "add_special": bool}            → {"ids": […], "text": decoded, "stream": decoded id by id}
//   {"ids": […], "skip_special": bool}          → {"text": …, "stream": …}
//   {"repeat": string, "times": n}              → {"num_tokens": n, "seconds": …}
// A tokenizer that cannot be read, or a text that cannot be encoded, gives {"error": message}.

#include <cstdint>
#include <ctime>
#include <iostream>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "tokenizer/tokenizer.h"

namespace {

using nibble::Json;
using nibble::tokenizer::IncrementalDecoder;
using nibble::tokenizer::Tokenizer;

std::string stream(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids, bool skip_special) {
  IncrementalDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.add(id);
  return text + decoder.finish();
}

Json time_encode(const Tokenizer& tokenizer, const Json& request) {
  std::string text;
  for (std::int64_t i = 0; i < request.at("times").get<std::int64_t>(); ++i) {
    text += request.at("repeat").get<std::string>();
  }
  const std::clock_t begin = std::clock();  // CPU time: other programs do not count
  const std::size_t num_tokens = tokenizer.encode(text).size();
  return {{"num_tokens", num_tokens}, {"seconds", static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC}};
}

Json answer(const Tokenizer& tokenizer, const Json& request) {
  if (request.contains("repeat")) return time_encode(tokenizer, request);
  if (request.contains("ids")) {
    const auto ids = request.at("ids").get<std::vector<std::int32_t>>();
    const bool skip_special = request.at("skip_special").get<bool>();
    return {{"text", tokenizer.decode(ids, skip_special)}, {"stream", stream(tokenizer, ids, skip_special)}};
  }
  const auto ids = tokenizer.encode(request.at("text").get<std::string>(), request.at("add_special").get<bool>());
  return {{"ids", ids}, {"text", tokenizer.decode(ids)}, {"stream", stream(tokenizer, ids, true)}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: nibble_tokenize TOKENIZER_JSON < requests.jsonl\n";
    return 2;
  }
  try {
    const auto tokenizer = Tokenizer::from_json(nibble::read_text_file(argv[1]));
    std::string line;
    while (std::getline(std::cin, line)) {
      try {
        std::cout << answer(*tokenizer, Json::parse(line)).dump() << '\n';
      } catch (const nibble::Error& error) {
        std::cout << Json{{"error", error.what()}}.dump() << '\n';
      }
    }
  } catch (const nibble::Error& error) {
    std::cout << Json{{"error", error.what()}}.dump() << '\n';
    return 1;
  }
  return 0;
}
