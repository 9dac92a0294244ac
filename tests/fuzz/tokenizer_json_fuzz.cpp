// A tokenizer.json from anywhere: it is refused with an Error, or encodes and decodes any text.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size_bytes) {
  using nibble::tokenizer::IncrementalDecoder;
  using nibble::tokenizer::SpecialTokens;
  using nibble::tokenizer::Tokenizer;
  nibble::log::set_level(nibble::log::Level::Off);
  constexpr std::string_view kText =
      "<s>hello  world</s> <|x|> I'LL pay 1234567 \r\n\tStra\u00dfe \u4f60\u597d e\u0301\u0323 \xFF\xE4\xBD hi hi "
      "lllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll. ";
  try {
    const auto tokenizer = Tokenizer::from_json({reinterpret_cast<const char*>(input), size_bytes});
    const auto ids = tokenizer->encode(kText);
    tokenizer->encode(kText, false, SpecialTokens::AsText);
    tokenizer->decode(ids);
    IncrementalDecoder decoder(*tokenizer, false);
    for (std::int32_t id = -1; id < 40; ++id) {
      decoder.add(id);
      tokenizer->token_id(tokenizer->id_to_token(id));
    }
    decoder.finish();
  } catch (const nibble::Error&) {  // a refusal is an answer
  }
  return 0;
}
