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
def peer(smollm2):
    """(transformers model in float32, tokenizer)."""
    import torch
    import transformers

    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def greedy(peer):
    """Of each prompt: (prompt ids, ids that transformers continues it with: 64, or up to and with EOS)."""
    import torch

    model, tokenizer = peer
    results = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_GREEDY)
        results.append((ids[0].tolist(), out[0, ids.shape[1]:].tolist()))
    return results


@pytest.fixture(scope="module")
def logits(build_dir, smollm2, peer, greedy, tmp_path_factory):
    """Of each prompt and its continuation: (prompt length, ids, nibble's exact logits, transformers' logits)."""
    import torch

    model, _ = peer
    folder = tmp_path_factory.mktemp("logits")
    sequences = [prompt + continuation for prompt, continuation in greedy]
    (folder / "tokens.json").write_text(json.dumps(sequences), encoding="utf-8")
    subprocess.run([build_dir / "bin" / "nibble_logits", smollm2, "exact", folder / "tokens.json", folder / "out.f32"],
                   check=True)
    vocab_size = model.config.vocab_size
    rows = numpy.fromfile(folder / "out.f32", dtype=numpy.float32).reshape(-1, vocab_size)
    assert len(rows) == sum(len(sequence) for sequence in sequences)
    results, first = [], 0
    for sequence, (prompt, _) in zip(sequences, greedy):
        with torch.no_grad():
            theirs = model(torch.tensor([sequence])).logits[0].numpy()
        results.append((len(prompt), sequence, rows[first:first + len(sequence)], theirs))
        first += len(sequence)
    return results


def test_exact_logits_differ_by_less_than_5e_3(logits):
    largest = max(float(numpy.abs(ours - theirs).max()) for _, _, ours, theirs in logits)
    print(f"largest difference of a logit: {largest:.2e}")
    assert largest < 5e-3


def test_greedy_choice_is_transformers_at_every_position(logits):
    """By induction over positions, 64 greedy tokens of every prompt are identical."""
    for num_prompt, sequence, ours, _ in logits:
        chosen = ours[num_prompt - 1:-1].argmax(axis=1).tolist()
        assert chosen == sequence[num_prompt:]


@pytest.mark.parametrize("index", [0, 2, 3, 8])
def test_generate_prints_transformers_greedy_text(nibble, smollm2, peer, greedy, index):
    """The decode path, token by token over the paged cache."""
    _, tokenizer = peer
    done = subprocess.run([nibble, "generate", smollm2, "--prompt", PROMPTS[index], "--max-tokens", str(NUM_GREEDY),
                           "--temperature", "0", "--device", "reference", "--exact"], check=True, capture_output=True)
    expected = tokenizer.decode(greedy[index][1], skip_special_tokens=True)
    assert done.stdout.decode("utf-8") == expected + "\n"
