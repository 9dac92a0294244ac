"""The calibration pass against transformers: what nibble says that a block's outputs lose is recomputed from the
activations that transformers sees in the quantized model, and from weights that GPTQModel's code unpacks.

The numbers agree only if nibble's samples, attention, norms, Gram matrices and true-sequential order are right: each
linear's inputs come from quantized predecessors.
"""

import json
import re
import subprocess

import pytest

pytestmark = pytest.mark.torch

NUM_SAMPLES = 4
SEQ_LEN = 96
GROUP_SIZE = 64
TEXT = """The harbour lay still under a thin fog. Two boats came in at dawn, and nobody asked where they had been.
def area(width, height): return width * height  # in metres
In 1848 the town had 3,211 inhabitants; by 1901 there were 12,740, most of them employed in the mills.
Question: which is heavier, a kilogram of iron or a kilogram of feathers? Answer: they weigh the same.
"""


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "text.txt"
    path.write_text("".join(f"{i}. {TEXT}" for i in range(20)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def samples(smollm2, text_file):
    """The windows of the text: with exactly as many samples as there are windows, all are taken, in order."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = tokenizer.encode(text_file.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return [ids[i * SEQ_LEN:(i + 1) * SEQ_LEN] for i in range(len(ids) // SEQ_LEN)]


def quantize(nibble, model, text_file, output, num_samples, *flags):
    """{block: reported relative error}"""
    command = [nibble, "quantize", model, "--output", output, "--group-size", str(GROUP_SIZE), "--calibration",
               text_file, "--samples", str(num_samples), "--seq-len", str(SEQ_LEN), *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = re.findall(r"(model\.layers\.\d+): output error ([\d.]+) % \(round to nearest: ([\d.]+) %\)", result.stderr)
    assert len(lines) == 30
    return {block: (float(error) / 100, float(rtn) / 100) for block, error, rtn in lines}


def dequantized(folder, peer):
    """Every weight in f32, the linears unpacked by GPTQModel's code."""
    import safetensors.torch
    import torch

    stored = safetensors.torch.load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    state = {name: tensor.float() for name, tensor in stored.items() if tensor.is_floating_point()}
    for name in [name for name in stored if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        tensors = {suffix: stored[f"{module}.{suffix}"] for suffix in ("qweight", "qzeros", "scales", "g_idx")}
        state[f"{module}.weight"] = peer.dequantize(tensors, config["bits"], config["group_size"],
                                                    config["checkpoint_format"], torch.float32)
        del state[f"{module}.scales"]
    return state


def layer_errors(state, float_model, samples):
    """{block: mean over its linears of |(W - Ŵ) x|² / |W x|²}, x as the model with the weights Ŵ has it."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(float_model.config).eval()
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    sums = {}

    def measure(name):
        weight = float_model.get_submodule(name).weight.detach()

        def hook(module, inputs, output):
            expected = inputs[0] @ weight.T
            error, norm = sums.get(name, (0, 0))
            sums[name] = (error + (output - expected).double().square().sum(), norm + expected.double().square().sum())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_hook(measure(name))
    with torch.no_grad():
        model(torch.tensor(samples))
    blocks = {}
    for name, (error, norm) in sums.items():
        blocks.setdefault(re.match(r"model\.layers\.\d+", name)[0], []).append(float(error / norm))
    assert all(len(errors) == 7 for errors in blocks.values())
    return {block: sum(errors) / len(errors) for block, errors in blocks.items()}


@pytest.mark.parametrize("flags", [("--sym",), ("--asym", "--desc-act")], ids=" ".join)
def test_reported_errors_are_those_of_transformers(nibble, smollm2, build_dir, text_file, samples, flags, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    import peers

    peer = peers.GptqModel(build_dir / "oracle" / "peers")
    output = tmp_path / "gptq"
    reported = quantize(nibble, smollm2, text_file, output, len(samples), "--method", "gptq", *flags)
    float_model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    measured = layer_errors(dequantized(output, peer), float_model, samples)
    for block, (error, rtn) in reported.items():
        assert error == pytest.approx(measured[block], rel=0.02, abs=1e-5), block
        assert error < rtn, block
