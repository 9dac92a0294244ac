"""FP8 against torch's own cast, compressed-tensors' and transformers' dequantization (--oracle)."""

import json
import subprocess

import numpy
import pytest
from test_formats import MODULE, tool  # noqa: F401 fixture

pytestmark = pytest.mark.torch

FUSED = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"],
         ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]
PREFIX = "model.layers.0."


class Sizes:
    def __init__(self, hidden, intermediate, kv):
        self.hidden = hidden
        self.intermediate = intermediate
        self.linears = {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden), "mlp.down_proj": (hidden, intermediate)}


RAGGED = Sizes(192, 320, 96)  # no multiples of 128: the last blocks are narrower
WHOLE = Sizes(256, 384, 128)  # transformers' dequantization takes whole blocks only


def write_model(folder, sizes):
    """A one-layer Llama in FP16 whose weights span many binades, with a row of zeros."""
    import torch
    from safetensors.torch import save_file
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    tensors = {"model.embed_tokens.weight": torch.randn(64, sizes.hidden, generator=generator),
               "model.norm.weight": torch.ones(sizes.hidden)}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{PREFIX}{norm}.weight"] = torch.ones(sizes.hidden)
    for name, shape in sizes.linears.items():
        weight = torch.randn(shape, generator=generator) * torch.exp2(
            torch.randint(-9, 1, shape, generator=generator).float())
        weight[3] = 0
        tensors[f"{PREFIX}{name}.weight"] = weight
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate, "num_hidden_layers": 1,
        "num_attention_heads": sizes.hidden // 32, "num_key_value_heads": sizes.linears["self_attn.k_proj"][0] // 32,
        "head_dim": 32, "vocab_size": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "torch_dtype": "float16"}))
    return folder


def quantize(nibble, folder, sizes, strategy, layout):
    """(source, quantized), both as {name: tensor}; layout is --format."""
    model = write_model(folder / "model", sizes)
    subprocess.run([nibble, "quantize", model, "--method", "fp8", "--weight-strategy", strategy, "--format", layout,
                    "--output", folder / "out"], check=True)
    return load(model), load(folder / "out")


def load(folder):
    from safetensors.torch import load_file
    return load_file(folder / "model.safetensors")


def expanded(scale, shape):
    """One scale a weight."""
    if scale.ndim == 2 and scale.shape[1] != 1 or scale.shape != (shape[0], 1) and scale.numel() > 1:
        scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:shape[0], :shape[1]]
    return scale.expand(shape)


def torch_scale(weights, strategy):
    """The scale of each of `weights`, which are fused where they are served."""
    import torch

    def of(largest):
        scale = largest / 448
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    if strategy == "tensor":
        return [of(torch.stack([weight.abs().max() for weight in weights]).max()).reshape(1)] * len(weights)
    if strategy == "channel":
        return [of(weight.abs().amax(1, keepdim=True)) for weight in weights]
    blocks = []
    for weight in weights:
        rows, cols = -(-weight.shape[0] // 128), -(-weight.shape[1] // 128)
        padded = torch.zeros(rows * 128, cols * 128)
        padded[:weight.shape[0], :weight.shape[1]] = weight
        blocks.append(of(padded.reshape(rows, 128, cols, 128).abs().amax((1, 3))))
    return blocks


@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_codes_and_scales_are_torchs(nibble, tmp_path, strategy):
    import torch
    source, written = quantize(nibble, tmp_path, RAGGED, strategy, "fp8")
    for names in FUSED:
        weights = [source[f"{PREFIX}{name}.weight"].float() for name in names]
        for name, weight, scale in zip(names, weights, torch_scale(weights, strategy)):
            suffix = "weight_scale_inv" if strategy == "block" else "weight_scale"
            assert torch.equal(written[f"{PREFIX}{name}.{suffix}"], scale), name
            codes = (weight / expanded(scale, weight.shape)).clamp(-448, 448).to(torch.float8_e4m3fn)
            assert written[f"{PREFIX}{name}.weight"].dtype == torch.float8_e4m3fn
            assert torch.equal(written[f"{PREFIX}{name}.weight"].view(torch.uint8), codes.view(torch.uint8)), name


def expect_same_numbers(tool, folder, sizes, theirs):  # noqa: F811
    """theirs(name) is a linear as the peer dequantizes it; nibble's reader must give the same floats."""
    (folder / "modules.json").write_text(json.dumps({PREFIX + name: shape for name, shape in sizes.linears.items()}))
    subprocess.run([tool, "dump", folder / "out", folder / "modules.json", folder], check=True)
    for name, shape in sizes.linears.items():
        ours = numpy.fromfile(folder / f"{PREFIX}{name}.f32", dtype=numpy.float32).reshape(shape)
        numpy.testing.assert_array_equal(ours, theirs(name).float().numpy())


def test_transformers_dequantizes_blocks_to_the_same_numbers(nibble, tool, tmp_path):  # noqa: F811
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    _, written = quantize(nibble, tmp_path, WHOLE, "block", "fp8")
    expect_same_numbers(tool, tmp_path, WHOLE, lambda name: Fp8Dequantize(None)._dequantize_one(
        written[f"{PREFIX}{name}.weight"], written[f"{PREFIX}{name}.weight_scale_inv"], torch.float32))


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_compressed_tensors_dequantizes_to_the_same_numbers(nibble, tool, tmp_path, strategy):  # noqa: F811
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    _, written = quantize(nibble, tmp_path, RAGGED, strategy, "compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
    assert scheme.input_activations.dynamic and scheme.weights.strategy == strategy
    compressor = BaseCompressor.get_value_from_registry("float-quantized")

    def decompress(name):
        prefix = f"{PREFIX}{name}."
        return compressor.decompress({key.removeprefix(prefix): tensor for key, tensor in written.items()
                                      if key.startswith(prefix)}, scheme)["weight"]
    expect_same_numbers(tool, tmp_path, RAGGED, decompress)


@pytest.mark.parametrize("layout", ["scalar", "tensor", "channel", "vector", "block"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nibble_dequantizes_what_torch_wrote(tool, tmp_path, layout, dtype):  # noqa: F811
    import torch
    from safetensors.torch import save_file
    shape = (200, 300)
    scale_shape = {"scalar": (), "tensor": (1,), "channel": (200, 1), "vector": (200,), "block": (2, 3)}[layout]
    generator = torch.Generator().manual_seed(6)
    weight = (torch.randn(shape, generator=generator) * 60).clamp(-448, 448).to(torch.float8_e4m3fn)
    scale = (torch.rand(scale_shape, generator=generator) + 0.01).to(getattr(torch, dtype))
    folder = tmp_path / "model"
    folder.mkdir()
    suffix = "weight_scale_inv" if layout == "block" else "weight_scale"
    save_file({f"{MODULE}.weight": weight, f"{MODULE}.{suffix}": scale}, folder / "model.safetensors",
              metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {
        "quant_method": "fp8", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128] if layout == "block" else None}}))
    (tmp_path / "modules.json").write_text(json.dumps({MODULE: shape}))
    subprocess.run([tool, "dump", folder, tmp_path / "modules.json", tmp_path], check=True)
    values = numpy.fromfile(tmp_path / f"{MODULE}.f32", dtype=numpy.float32).reshape(shape)
    scale = scale.float()
    if layout == "vector":
        scale = scale[:, None]
    if layout == "block":
        scale = expanded(scale, torch.Size(shape))
    numpy.testing.assert_array_equal(values, (weight.float() * scale).numpy())
