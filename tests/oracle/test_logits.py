"""The forward pass against transformers in float32, on the FP16 checkpoint that nibble imports."""

import json
import subprocess

import numpy
import pytest

pytestmark = pytest.mark.torch

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at 100 degrees Celsius because",
    "1, 1, 2, 3, 5, 8, 13,",
    "Die Katze sitzt auf",
    "Le chat est sur la",
    "東京は日本の",
    "SELECT name, age FROM users WHERE",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "In 1969, Neil Armstrong",
    "{\"name\": \"Alice\", \"age\":",
    "Ingredients: flour, sugar, eggs. Instructions:",
    "🙂🙂🙂",
    "A",
    "   leading and trailing spaces   ",
    "To be, or not to be, that is the question:",
    "#include <iostream>\nint main() {",
    "Photosynthesis is the process by which plants",
]
NUM_GREEDY = 64


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def logits(build_dir, smollm2, tokenizer, tmp_path_factory):
    """Of each prompt with nibble's greedy continuation (64 tokens, or up to and with EOS): (number of prompt tokens,
    token ids, nibble's logits in exact mode, transformers' logits in float32)."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("logits")
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    (folder / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    subprocess.run([build_dir / "bin" / "nibble_logits", smollm2, "exact", str(NUM_GREEDY), folder / "prompts.json",
                    folder / "sequences.json", folder / "logits.f32"], check=True)
    sequences = json.loads((folder / "sequences.json").read_text(encoding="utf-8"))
    assert len(sequences) == len(prompts)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    rows = numpy.fromfile(folder / "logits.f32", dtype=numpy.float32).reshape(-1, model.config.vocab_size)
    assert len(rows) == sum(len(sequence) for sequence in sequences)
    results, first = [], 0
    for prompt, sequence in zip(prompts, sequences):
        assert sequence[:len(prompt)] == prompt
        with torch.no_grad():
            theirs = model(torch.tensor([sequence])).logits[0].numpy()
        results.append((len(prompt), sequence, rows[first:first + len(sequence)], theirs))
        first += len(sequence)
    return results


def test_exact_logits_differ_by_less_than_5e_3(logits):
    largest = max(float(numpy.abs(ours - theirs).max()) for _, _, ours, theirs in logits)
    print(f"largest difference of a logit: {largest:.2e}")
    assert largest < 5e-3


def test_64_greedy_tokens_are_transformers_choice(logits, tokenizer):
    """Decoded token by token over the paged cache; transformers agrees at every position, so by induction its own
    greedy continuation is the same."""
    for num_prompt, sequence, _, theirs in logits:
        continuation = sequence[num_prompt:]
        assert theirs[num_prompt - 1:-1].argmax(axis=1).tolist() == continuation
        assert len(continuation) == NUM_GREEDY or continuation[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("index", [2, 8])
def test_generate_prints_the_decoded_tokens(nibble, smollm2, logits, tokenizer, index):
    done = subprocess.run([nibble, "generate", smollm2, "--prompt", PROMPTS[index], "--max-tokens", str(NUM_GREEDY),
                           "--temperature", "0", "--device", "reference", "--exact"], check=True, capture_output=True)
    num_prompt, sequence, _, _ = logits[index]
    expected = tokenizer.decode(sequence[num_prompt:], skip_special_tokens=True)
    assert done.stdout.decode("utf-8") == expected + "\n"
