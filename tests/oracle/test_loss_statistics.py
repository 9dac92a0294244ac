"""The end-loss statistics of quantize/loss_walk.h against PyTorch's autograd on SmolLM2's first, middle and last block:
forward pass, hand-written backward pass and sums all at once.
"""

import json
import subprocess

import pytest

pytestmark = pytest.mark.torch

BLOCKS = (0, 15, 29)
NUM_SAMPLES = 3
SEQ_LEN = 160  # more than a block of queries of nibble's attention


@pytest.fixture(scope="module")
def samples(smollm2):
    import tokenizers

    text = "".join(f"{i}. The harbour lay still; in 1848 it had {i * 37} boats, def area(w, h): return w * h. "
                   for i in range(80))
    tokenizer = tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [ids[i * SEQ_LEN:(i + 1) * SEQ_LEN] for i in range(NUM_SAMPLES)]


@pytest.fixture(scope="module")
def autograd(smollm2, samples):
    """{"loss": …, linear: {"token", "sequence": Fisher diagonal, "guided_gram", "gram"}}, in f64 throughout."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float64, attn_implementation="eager").eval()
    linears = {name: module for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and name.split(".")[2:3] and int(name.split(".")[2]) in BLOCKS}
    model.requires_grad_(False)
    seen = {}

    def watch(name):
        def hook(module, inputs, output):
            output.retain_grad()
            seen[name] = (inputs[0].detach()[0], output)

        return hook

    for name, module in linears.items():
        module.weight.requires_grad_(True)
        module.register_forward_hook(watch(name))
    result = {name: {"token": 0, "sequence": 0, "guided_gram": 0, "gram": 0} for name in linears}
    loss_sum = 0
    for sample in samples:
        ids = torch.tensor([sample])
        logits = model(ids).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum")
        model.zero_grad()
        loss.backward()
        loss_sum += float(loss.detach())
        for name, module in linears.items():
            inputs, output = seen[name]
            delta = output.grad[0]
            sums = result[name]
            sums["token"] = sums["token"] + (delta.square().T @ inputs.square())
            sums["sequence"] = sums["sequence"] + module.weight.grad.square()
            sums["guided_gram"] = sums["guided_gram"] + (inputs.T * delta.square().mean(1)) @ inputs
            sums["gram"] = sums["gram"] + inputs.T @ inputs
    result["loss"] = loss_sum / (len(samples) * (SEQ_LEN - 1))
    return result


@pytest.fixture(scope="module", params=["token", "sequence"])
def nibbles(request, build_dir, smollm2, samples, tmp_path_factory):
    """(Fisher form, mean loss, tensors by name)"""
    import safetensors.torch

    folder = tmp_path_factory.mktemp(request.param)
    (folder / "samples.json").write_text(json.dumps(samples))
    command = [build_dir / "bin" / "nibble_loss_statistics", smollm2, folder / "samples.json", "text", request.param,
               folder / "out", *(str(block) for block in BLOCKS)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return request.param, float(run.stdout), safetensors.torch.load_file(folder / "out" / "model.safetensors")


def relative_error(ours, theirs):
    """Of the worst row."""
    return float(((ours.double() - theirs).norm(dim=1) / theirs.norm(dim=1)).max())


def test_loss_is_that_of_transformers(nibbles, autograd):
    assert nibbles[1] == pytest.approx(autograd["loss"], rel=1e-5)


def test_fisher_diagonal_agrees_with_autograd(nibbles, autograd):
    form, _, tensors = nibbles
    names = [name for name in autograd if name != "loss"]
    assert len(names) == 7 * len(BLOCKS)
    for name in names:
        assert relative_error(tensors[f"{name}.fisher"], autograd[name][form]) < 1e-3, name


def test_gram_matrices_agree_with_autograd(nibbles, autograd):
    _, _, tensors = nibbles
    for name in [name for name in autograd if name != "loss"]:
        for kind in ("guided_gram", "gram"):
            if f"{name}.{kind}" in tensors:
                assert relative_error(tensors[f"{name}.{kind}"], autograd[name][kind]) < 1e-3, (name, kind)
