"""`nibble eval` against transformers in float32 and lm-eval's own prompts and tokenisation, in exact mode.

The large sets and the reference model lie outside the repository: $NIBBLE_SHARED names the folder that holds
data/eval/*.jsonl and data/models/*.gguf; without it the tests that need them are skipped.
"""

import importlib.util
import json
import math
import os
import pathlib
import subprocess

import pytest

pytestmark = pytest.mark.torch

QUIZ = [
    ("What do bees make?", ["honey", "milk", "steel", "paper money"], 0),
    ("Which animal barks?", ["a cat", "a dog", "a fish"], 1),
    ("At which temperature does water freeze?", ["0 °C", "50 °C", "100 °C", "at no temperature at all"], 0),
    ("The sky on a clear day is ____.", ["green", "blue", "made of wood"], 1),
    ("Which number comes after 41?", ["40", "42", "44", "one hundred"], 1),
    ("How do you make tea?", ["Pour hot water over tea leaves.", "Pour tea leaves over a hot engine."], 0),
    ("Where do fish live? ", ["in trees", "in water", "in the clouds", "on the moon", "in books"], 1),
    ("Was ist die Hauptstadt von Österreich?", ["Wien", "Zürich", "Köln"], 0),
    ("What is the opposite of hot?", ["cold", "  warm", "very hot"], 0),
    ("日本の首都はどこですか?", ["東京", "大阪", "京都"], 0),
]
SUBJECTS = [
    ("anatomy", "Which organ pumps blood?", ["Liver", "Heart", "Lung", "Skin"], 1),
    ("anatomy", " How many kidneys do most people have?\n", ["1", "2", "3", "4"], 1),
    ("high_school_physics", "The unit of force is the", ["watt", "joule", "newton", "volt"], 2),
    ("high_school_physics", "Light travels fastest in", ["water", "glass", "diamond", "a vacuum"], 3),
    ("world_religions", "Which book is holy in Islam?", ["The Quran", "The Veda", "The Edda", "The Iliad"], 0),
    ("computer_security", "What does \"HTTPS\" add to HTTP?", ["Speed", "Encryption", "Images", "Cookies"], 1),
]
BLANKS = [
    ("The trophy did not fit into the case because the _ was too large.", ["trophy", "case"], 0),
    ("Ann lent Bea a book, so _ thanked her for it.", ["Ann", "Bea"], 1),
    ("The ball broke the window because the _ was made of glass.", ["ball", "window"], 1),
    ("_ was tired after the race, so Tom drove Sam home.", ["Sam", "Tom"], 0),
]
TEXT = """The harbour lay quiet in the early morning. Two boats had come in before dawn, and their crews were asleep in
the small house by the pier. An old man walked along the water with his dog, as he did every day, and looked at the nets
that hung from the wall. He had fished here for fifty years; now his daughter had the boat. "It will rain," he said to
the dog. The dog did not answer. Behind the hill a train whistled, 7:42 as always, and the first shops opened. Das Wetter
blieb gut. In 1969, a storm had taken the roof off the church, and the new one was still called the new one.
def area(radius): return 3.14159 * radius ** 2
"""


@pytest.fixture(scope="module")
def shared():
    folder = os.environ.get("NIBBLE_SHARED")
    if not folder:
        pytest.skip("NIBBLE_SHARED is not set: the large evaluation sets are not here")
    return pathlib.Path(folder) / "data"


@pytest.fixture(scope="module")
def reference_model(nibble, shared, tmp_path_factory):
    """The reference model as an FP16 folder."""
    folder = tmp_path_factory.mktemp("reference") / "model"
    gguf = shared / "models" / "smollm2-135m-instruct-q8_0.gguf"
    subprocess.run([nibble, "import", gguf, "--output", folder], check=True)
    return folder


class Peer:
    """transformers in float32 behind lm-eval's interface of a language model."""

    def __init__(self, folder):
        import torch
        import transformers

        torch.set_num_threads(1)
        self.torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.encode_pair = lm_eval_encode_pair(lambda text: self.tokenizer(text).input_ids)

    def log_probs(self, ids):
        """[len(ids), vocabulary]: of the token after each position."""
        with self.torch.no_grad():
            return self.torch.log_softmax(self.model(self.torch.tensor([ids])).logits[0], dim=-1)

    def log_likelihoods(self, prompts):
        """Of each (context, continuation), as lm-eval computes it; all in one padded batch."""
        pairs = [self.encode_pair(*prompt) for prompt in prompts]
        inputs = [(context + continuation)[:-1] for context, continuation in pairs]
        distinct = [ids for i, ids in enumerate(inputs) if ids not in inputs[:i]]
        longest = max(map(len, distinct))
        # Causal attention: what stands behind a sequence does not reach it.
        batch = self.torch.tensor([ids + [0] * (longest - len(ids)) for ids in distinct])
        results = []
        with self.torch.no_grad():
            hidden = self.model.model(batch).last_hidden_state
            for ids, (_, continuation) in zip(inputs, pairs):
                row = hidden[distinct.index(ids)]
                logits = self.model.lm_head(row[len(ids) - len(continuation) : len(ids)])
                log_probs = self.torch.log_softmax(logits, dim=-1)
                results.append(sum(log_probs[i, token].item() for i, token in enumerate(continuation)))
        return results


def lm_eval_encode_pair(encode):
    """lm-eval's split of a text into context and continuation tokens."""
    from lm_eval.api.model import TemplateLM

    class Tokenizing(TemplateLM):
        eot_token_id = None
        _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

        def tok_encode(self, string, **kwargs):
            return encode(string)

    return Tokenizing()._encode_pair


def lm_eval_prompts(row):
    """[(context, continuation)] of a row, from the task files in lm-eval's wheel."""
    from lm_eval.utils import apply_template, load_yaml_config

    tasks = pathlib.Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    if "subject" in row:
        task = load_yaml_config(str(tasks / "mmlu" / "default" / f"mmlu_{row['subject']}.yaml"))
        context = task["description"] + apply_template(task["doc_to_text"], row)
        return [(context, " " + letter) for letter in task["doc_to_choice"]]
    if row.get("is_blank"):
        spec = importlib.util.spec_from_file_location("winogrande", tasks / "winogrande" / "preprocess_winogrande.py")
        functions = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(functions)
        doc = {"sentence": row["question"], "option1": row["choices"][0], "option2": row["choices"][1]}
        return [(context, " " + functions.doc_to_target(doc)) for context in functions.doc_to_choice(doc)]
    task = load_yaml_config(str(tasks / "arc" / "arc_easy.yaml"))
    context = apply_template(task["doc_to_text"], row)
    return [(context, " " + choice) for choice in row["choices"]]


def run_eval(nibble, folder, *arguments):
    """The JSON report of an exact run."""
    report = folder / "report.json"
    command = [nibble, "eval", *arguments, "--exact", "--threads", "2", "--json", report]
    subprocess.run(command, check=True)
    return json.loads(report.read_text(encoding="utf-8"))


def write_rows(path, rows):
    keys = ("subject", "question", "choices", "answer")
    lines = [json.dumps({key: row[key] for key in keys if key in row}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def argmax(values):
    return max(range(len(values)), key=lambda i: values[i])


@pytest.fixture(scope="module")
def peer(smollm2):
    return Peer(smollm2)


@pytest.mark.parametrize(
    "rows",
    [
        [{"question": q, "choices": c, "answer": a} for q, c, a in QUIZ],
        [{"subject": s, "question": q, "choices": c, "answer": a} for s, q, c, a in SUBJECTS],
        [{"question": q, "choices": c, "answer": a, "is_blank": True} for q, c, a in BLANKS],
    ],
    ids=["arc", "mmlu", "winogrande"],
)
def test_log_likelihoods_are_those_of_lm_evals_prompts(nibble, smollm2, peer, tmp_path, rows):
    write_rows(tmp_path / "set.jsonl", rows)
    report = run_eval(nibble, tmp_path, smollm2, "--tasks", f"choice:{tmp_path / 'set.jsonl'}")
    items = report["items"]["set"][0]
    assert len(items) == len(rows)
    right = right_norm = 0
    for item, row in zip(items, rows):
        expected = peer.log_likelihoods(lm_eval_prompts(row))
        assert item["log_likelihoods"] == pytest.approx(expected, abs=5e-3)
        assert item["chosen"] == argmax(expected)
        right += argmax(expected) == row["answer"]
        per_character = [value / len(choice) for value, choice in zip(expected, row["choices"])]
        right_norm += argmax(per_character) == row["answer"]
    metrics = report["models"][0]["metrics"]
    assert metrics["set"]["value"] == pytest.approx(right / len(rows))
    if "set_norm" in metrics:
        assert metrics["set_norm"]["value"] == pytest.approx(right_norm / len(rows))


def test_perplexity_is_transformers(nibble, smollm2, peer, tmp_path):
    text, window_len = TEXT, 40
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    report = run_eval(nibble, tmp_path, smollm2, "--tasks", "ppl", "--text", tmp_path / "text.txt", "--window-len",
                      str(window_len))
    ids = peer.tokenizer(text).input_ids
    losses = []
    for first in range(0, len(ids) - window_len + 1, window_len):
        window = peer.torch.tensor([ids[first : first + window_len]])
        with peer.torch.no_grad():
            losses.append(peer.model(window, labels=window).loss.item())
    assert len(losses) > 2
    metric = report["models"][0]["metrics"]["ppl"]
    assert metric["num_samples"] == len(losses) * (window_len - 1)
    assert metric["value"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-3)


def test_kl_is_torchs(nibble, smollm2, peer, tmp_path):
    """Against a copy of the model with noise on its weights."""
    import shutil

    other = tmp_path / "noisy"
    noisy = Peer(smollm2)
    generator = noisy.torch.Generator().manual_seed(1)
    for name, weight in noisy.model.named_parameters():
        if "proj" in name:
            noise = noisy.torch.randn(weight.shape, generator=generator)
            weight.data = (weight.data + 0.1 * weight.data.std() * noise).half().float()
    noisy.model.half().save_pretrained(other)
    noisy.model.float()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2 / name, other)

    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    report = run_eval(nibble, tmp_path, other, "--baseline", smollm2, "--tasks", "kl", "--text", tmp_path / "text.txt",
                      "--window-len", "128", "--windows", "1")
    ids = peer.tokenizer(TEXT).input_ids[:128]
    p, q = peer.log_probs(ids)[:-1], noisy.log_probs(ids)[:-1]
    expected = peer.torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean().item()
    agreement = (p.argmax(-1) == q.argmax(-1)).float().mean().item()
    metrics = report["models"][1]["metrics"]
    assert expected > 0.01
    assert metrics["kl"]["value"] == pytest.approx(expected, rel=1e-3)
    assert metrics["top1"]["value"] == pytest.approx(agreement, abs=0.01)


@pytest.mark.parametrize("name", ["arc_easy", "mmlu"])
def test_chosen_answers_agree_on_200_rows(nibble, shared, reference_model, tmp_path, name):
    path = shared / "eval" / f"{name}.jsonl"
    report = run_eval(nibble, tmp_path, reference_model, "--tasks", f"choice:{path}", "--limit", "200")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]  # U+2028 is text
    peer = Peer(reference_model)
    items = report["items"][name][0]
    assert len(items) == 200
    agreed = 0
    for item in items:
        expected = peer.log_likelihoods(lm_eval_prompts(rows[item["line"] - 1]))
        agreed += item["chosen"] == argmax(expected)
    assert agreed >= 0.995 * len(items)


def test_perplexity_of_the_reference_model(nibble, shared, reference_model, tmp_path):
    """First four windows of 2048 tokens of WikiText-2's test text."""
    report = run_eval(nibble, tmp_path, reference_model, "--tasks", "ppl", "--text", shared / "wikitext2" / "test.txt",
                      "--windows", "4")
    assert report["models"][0]["metrics"]["ppl"]["value"] == pytest.approx(24.69, abs=0.025)
