"""What `nibble quantize` writes, by every way of making integers or codebooks and in every format, as peers dequantize
it: GPTQModel's, AutoAWQ's and compressed-tensors' own code (--oracle), and the numpy reader of test_squeezellm."""

import json
import pathlib
import subprocess
import sys

import numpy
import pytest
import safetensors.numpy
from test_compressed_tensors import packed_compressor, scheme_in
from test_formats import autoawq, gptqmodel, tool  # noqa: F401 fixtures
from test_squeezellm import unpack

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
from tiny_model import varied_text, write_tiny_llama  # noqa: E402

PREFIX = "model.layers.1."
SHAPES = {**{f"{PREFIX}self_attn.{name}_proj": (64, 64) for name in "qkvo"}, f"{PREFIX}mlp.gate_proj": (96, 64),
          f"{PREFIX}mlp.up_proj": (96, 64), f"{PREFIX}mlp.down_proj": (64, 96)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_llama(folder / "model", num_layers=2)
    (folder / "text.txt").write_text(varied_text(3000))
    return folder


def quantize(nibble, model, output, flags):
    subprocess.run([nibble, "quantize", model / "model", *flags.split(), "--calibration", model / "text.txt", "--samples",
                    "16", "--seq-len", "64", "--output", output], check=True, capture_output=True)
    return json.loads((output / "config.json").read_text())["quantization_config"]


def nibbles_values(tool, folder, scratch):  # noqa: F811
    """{module: W [out, in]}, as nibble's reader has it."""
    (scratch / "modules.json").write_text(json.dumps(SHAPES))
    subprocess.run([tool, "dump", folder, scratch / "modules.json", scratch], check=True)
    return {name: numpy.fromfile(scratch / f"{name}.f32", dtype=numpy.float32).reshape(shape)
            for name, shape in SHAPES.items()}


def modules_of(tensors):
    """{module: {suffix: tensor}}"""
    return {name: {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
            for name in SHAPES}


def expect_grid_of(config, bits, sym, desc_act=False):
    assert (config["bits"], config["sym"], config["desc_act"]) == (bits, sym, desc_act)


WAYS = ["rtn", "gptq", "gptq --guided", "awq", "awq --rounding gptq"]


@pytest.mark.torch
@pytest.mark.parametrize("flags, bits, layout, sym", [
    *[(f"{way} --bits {bits}", bits, "gptq", True) for way in ["rtn", "gptq", "gptq --guided"] for bits in (2, 3, 4, 8)],
    *[(f"{way} --bits {bits} --asym --format gptq_v2", bits, "gptq_v2", False) for way in WAYS for bits in (2, 3, 4, 8)],
    *[(f"{way} --sym --format gptq", 4, "gptq", True) for way in ["awq", "awq --rounding gptq"]],
    *[(f"gptq --desc_act --bits {bits}", bits, "gptq", True) for bits in (2, 3, 4, 8)],
    ("gptq --desc_act --asym", 4, "gptq_v2", False), ("gptq --guided --quality best --bits 3", 3, "gptq", True),
])
@pytest.mark.parametrize("group_size", [32, -1])
def test_gptqmodel_dequantizes_what_quantize_writes(nibble, model, tool, gptqmodel, tmp_path, flags, bits,  # noqa: F811
                                                    layout, sym, group_size):
    import torch
    from safetensors.torch import load_file
    if group_size == -1 and "desc_act" in flags:
        pytest.skip("one group has no order")
    config = quantize(nibble, model, tmp_path / "out", f"--method {flags} --group-size {group_size}")
    expect_grid_of(config, bits, sym, "desc_act" in flags)
    ours = nibbles_values(tool, tmp_path / "out", tmp_path)
    for name, tensors in modules_of(load_file(tmp_path / "out" / "model.safetensors")).items():
        theirs = gptqmodel.dequantize(tensors, bits, SHAPES[name][1] if group_size == -1 else group_size, layout,
                                      torch.float32)
        numpy.testing.assert_array_equal(theirs.numpy(), ours[name], err_msg=name)


@pytest.mark.torch
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("symmetry", ["--asym", "--sym"])
def test_autoawq_dequantizes_what_quantize_writes(nibble, model, tool, autoawq, tmp_path, way, symmetry):  # noqa: F811
    import torch
    from safetensors.torch import load_file
    config = quantize(nibble, model, tmp_path / "out", f"--method {way} {symmetry} --format autoawq --group-size 32")
    assert (config["quant_method"], config["version"], config["bits"]) == ("awq", "gemm", 4)
    ours = nibbles_values(tool, tmp_path / "out", tmp_path)
    for name, tensors in modules_of(load_file(tmp_path / "out" / "model.safetensors")).items():
        theirs = autoawq.dequantize(tensors, 32, torch.float32)
        numpy.testing.assert_array_equal(theirs.numpy(), ours[name], err_msg=name)


@pytest.mark.torch
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bits, symmetry, group_size", [
    (2, "--asym", 32), (3, "--sym", 32), (4, "--asym", 32), (4, "--sym", -1), (8, "--asym", -1), (8, "--sym", 32)])
def test_compressed_tensors_dequantizes_what_quantize_writes(nibble, model, tool, tmp_path, way, bits,  # noqa: F811
                                                             symmetry, group_size):
    from safetensors.torch import load_file
    quantize(nibble, model, tmp_path / "out",
             f"--method {way} --bits {bits} {symmetry} --format compressed-tensors --group-size {group_size}")
    scheme = scheme_in(tmp_path / "out")
    assert (scheme.weights.num_bits, scheme.weights.symmetric) == (bits, symmetry == "--sym")
    ours = nibbles_values(tool, tmp_path / "out", tmp_path)
    for name, tensors in modules_of(load_file(tmp_path / "out" / "model.safetensors")).items():
        theirs = packed_compressor().decompress(tensors, scheme)["weight"]
        numpy.testing.assert_array_equal(theirs.numpy(), ours[name].astype(numpy.float16), err_msg=name)


@pytest.mark.parametrize("guided", ["", "--guided", "--sensitivity hessian"])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("sparsity", ["0", "0.45%"])
def test_numpy_reads_the_codebooks_that_quantize_writes(nibble, model, tool, tmp_path, guided, bits,  # noqa: F811
                                                        sparsity):
    quantize(nibble, model, tmp_path / "out", f"--method squeezellm {guided} --bits {bits} --sparsity {sparsity}")
    ours = nibbles_values(tool, tmp_path / "out", tmp_path)
    for name, tensors in modules_of(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")).items():
        assert ("rows" in tensors) == (sparsity != "0")
        numpy.testing.assert_array_equal(unpack(tensors, bits), ours[name], err_msg=name)
