#pragma once

#include <string>

#include "core/json.h"
#include "formats/gguf.h"

namespace nibble::formats {

/// tokenizer.json made from the file's vocabulary (formats.md §8): `gpt2` (byte-level BPE) with the pre-tokenizers
/// smollm, llama-bpe, qwen2 and gpt-2, and `llama` (SentencePiece BPE with byte fallback).
/// Errors: Unsupported naming the tokenizer or pre-tokenizer; Corrupt.
std::string make_tokenizer_json(const GgufFile& file);
/// tokenizer_config.json: special tokens and the chat template.
Json make_tokenizer_config(const GgufFile& file);

}  // namespace nibble::formats
