#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

/// What the end loss says about a linear. The loss is L = Σ_t CE(logits_t, y_t) of the float model over the calibration
/// tokens, δ[t, n] = ∂L/∂y[t, n] its gradient at the linear's outputs, x_t the linear's inputs.
namespace nibble::quantize {

/// Where the labels y_t come from.
enum class LossLabels : std::uint8_t {
  Sampled,  // drawn from the model's own softmax: the true Fisher information
  Text,     // the text's next token: the empirical Fisher information; the last token of a sample has none
};

/// What is squared in the Fisher diagonal.
enum class FisherForm : std::uint8_t {
  Token,     // Σ_t (δ[t,n] x[t,k])²
  Sequence,  // Σ_sequences (Σ_t δ[t,n] x[t,k])², as SqueezeLLM's own code has it
};

struct LossOptions {
  LossLabels labels = LossLabels::Sampled;
  FisherForm fisher_form = FisherForm::Token;
  std::uint64_t seed = 0;  // of sampled labels
};

/// Which sums a method reads; the others are not computed.
struct LossNeeds {
  bool fisher = false;
  bool guided_gram = false;
  bool gram = false;
};

/// Of one linear; tensors that no LossNeeds asked for are empty.
struct LossStatistics {
  Tensor fisher;  // f32 [out, in] diagonal of the Fisher information, by LossOptions::fisher_form
  Tensor
      guided_gram;  // f32 [in, in] Σ_t s_t x_t x_t^T, s_t = mean_n δ[t,n]²; symmetric (GuidedQuant, arXiv 2505.07004)
};

/// Of one stage, whose linears share their input.
struct StageLossStatistics {
  std::vector<LossStatistics> linears;  // as the stage's linears
  Tensor gram;                          // f32 [in, in] Σ_t x_t x_t^T, symmetric
  std::int64_t num_tokens = 0;
};

}  // namespace nibble::quantize
