#pragma once

namespace nibble::tokenizer {

// The Rust crates behind `tokenizers` carry old Unicode tables, and vocabularies were trained with them: to give the
// same tokens, what those tables do not know is left alone here too.

/// Has a combining class, a decomposition or a composition that unicode-normalization-alignments 0.1 (Unicode 9) does
/// not know: normalization passes it through, and it parts what stands before from what stands behind.
bool is_newer_than_normalization(char32_t code_point);

/// Unicode 15 and unicode_categories 0.1 (Unicode 8) disagree whether it is punctuation.
bool is_newer_than_punctuation(char32_t code_point);

}  // namespace nibble::tokenizer
