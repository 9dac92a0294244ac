// A template from outside, and what a request may give it: no template may crash, hang or use up the memory.
// Input: the template's text; behind a NUL byte, if there is one, the messages as JSON.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/json.h"
#include "tokenizer/chat_template.h"

namespace {

nibble::Json messages_from(std::string_view text) {
  if (!text.empty()) return nibble::parse_json(text, "messages");
  return nibble::Json::parse(R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hällo"},
    {"role": "assistant", "content": null, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {"x": 1.5}}}]},
    {"role": "user", "content": [{"type": "text", "text": "<b>"}]}])");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  const std::string_view text(reinterpret_cast<const char*>(input), size_bytes);
  const std::size_t end = text.find('\0');
  try {
    const auto chat_template = nibble::tokenizer::ChatTemplate::compile(text.substr(0, end), "fuzz");
    nibble::tokenizer::ChatTemplate::Options options;
    options.tools = nibble::Json::array({{{"type", "function"}, {"function", {{"name", "f"}}}}});
    options.bos_token = "<s>";
    chat_template->render(messages_from(end == std::string_view::npos ? "" : text.substr(end + 1)), options);
  } catch (const nibble::Error&) {
    // A clear refusal is an answer.
  }
  return 0;
}
