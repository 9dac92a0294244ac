"""compressed-tensors files against compressed-tensors' own compressors (--oracle)."""

import json
import subprocess

import numpy
import pytest
from test_formats import MODULE, Linear, load_torch, read_with_nibble, tool, write_with_nibble  # noqa: F401 fixture

pytestmark = pytest.mark.torch

parameters = pytest.mark.parametrize("bits, group_size, sym", [
    (4, 32, True), (4, 64, False), (4, -1, True), (8, 32, True), (8, -1, False), (3, 32, True), (3, 64, False),
    (2, 32, True), (2, 32, False),
])


def packed_compressor():
    from compressed_tensors.compressors import BaseCompressor
    return BaseCompressor.get_value_from_registry("pack-quantized")


def scheme_in(folder):
    """The scheme that compressed-tensors finds for MODULE in a folder's config.json."""
    from compressed_tensors.quantization import QuantizationConfig
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    assert config.quant_method == "compressed-tensors" and config.quantization_status == "compressed"
    (scheme,) = config.config_groups.values()
    assert scheme.targets == ["Linear"]
    return scheme


def save(folder, tensors, scheme, layout):
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import save_file
    folder.mkdir()
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=layout, quantization_status="compressed",
                                ignore=["lm_head", "re:.*router$"])
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "llama", "quantization_config": json.loads(config.model_dump_json())}))
    save_file({f"{MODULE}.{name}": tensor.contiguous() for name, tensor in tensors.items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_scheme(bits, group_size, sym, **args):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(
        num_bits=bits, symmetric=sym, group_size=group_size, strategy="channel" if group_size == -1 else "group",
        **args))


def compress(linear, scheme):
    """What compressed-tensors stores for the linear's values."""
    import torch
    zeros = (linear.zeros.astype(numpy.int32) - 2 ** (linear.bits - 1)).astype(numpy.int8)
    return packed_compressor().compress({
        "weight": torch.from_numpy(linear.values), "weight_scale": torch.from_numpy(linear.scales),
        "weight_zero_point": torch.from_numpy(zeros)}, scheme)


@parameters
def test_their_decompressor_gives_nibbles_values(tool, tmp_path, bits, group_size, sym):  # noqa: F811
    linear = Linear(bits, group_size, False, sym, smallest_zero=0)
    folder = write_with_nibble(tool, tmp_path, linear, {
        "format": "compressed-tensors", "bits": bits, "group_size": group_size, "sym": sym})
    scheme = scheme_in(folder)
    assert (scheme.weights.num_bits, scheme.weights.symmetric) == (bits, sym)
    theirs = packed_compressor().decompress(load_torch(folder), scheme)["weight"]
    numpy.testing.assert_array_equal(theirs.numpy(), linear.values.astype(numpy.float16))
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)


@parameters
def test_nibble_reads_their_files_and_repacks_them_to_the_same_bytes(tool, tmp_path, bits, group_size, sym):  # noqa: F811
    import torch
    linear = Linear(bits, group_size, False, sym, smallest_zero=0)
    tensors = compress(linear, make_scheme(bits, group_size, sym))
    folder = save(tmp_path / "theirs", tensors, make_scheme(bits, group_size, sym), "pack-quantized")
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)
    ours = load_torch(write_with_nibble(tool, tmp_path, linear, {
        "format": "compressed-tensors", "bits": bits, "group_size": group_size, "sym": sym}))
    assert ours.keys() == tensors.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == tensors[name].dtype and torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize("preset", ["FP8", "FP8_DYNAMIC", "FP8_BLOCK", "W8A8"])
def test_nibble_reads_their_bytes(tool, tmp_path, preset):  # noqa: F811
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import preset_name_to_scheme
    scheme = preset_name_to_scheme(preset, ["Linear"])
    layout = "int-quantized" if preset == "W8A8" else "float-quantized"
    linear = Linear(8, -1, False, True, smallest_zero=0, out_features=160, in_features=288)
    weight = torch.from_numpy(linear.values)
    limit = 127 if preset == "W8A8" else 448
    if preset == "FP8":
        scale = (weight.abs().max() / limit).reshape(1)
    elif preset == "FP8_BLOCK":
        padded = torch.nn.functional.pad(weight, (0, 96, 0, 96)).reshape(2, 128, 3, 128)
        scale = padded.abs().amax(dim=(1, 3)) / limit
    else:
        scale = weight.abs().amax(dim=1, keepdim=True) / limit
    scale = scale.to(torch.bfloat16)
    compressor = BaseCompressor.get_value_from_registry(layout)
    tensors = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    if preset == "FP8":
        tensors["input_scale"] = torch.tensor([0.25])
    folder = save(tmp_path / "theirs", tensors, scheme, layout)
    theirs = compressor.decompress(tensors | {"weight_scale": scale.float()}, scheme)["weight"]
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), theirs.float().numpy())


def test_nibble_reads_the_padded_words_of_releases_before_0_20(tool, tmp_path):  # noqa: F811
    """Ten values of three bits a word, two bits empty: numpy packs them as those releases did."""
    import torch
    linear = Linear(3, 32, False, False, smallest_zero=0)

    def pack(values):  # along the last dimension
        count = -(-values.shape[1] // 10)
        padded = numpy.pad(values.astype(numpy.uint32), ((0, 0), (0, count * 10 - values.shape[1])))
        shifts = numpy.arange(10, dtype=numpy.uint32) * 3
        words = (padded.reshape(len(values), count, 10) << shifts).sum(axis=2, dtype=numpy.uint32)
        return torch.from_numpy(words.view(numpy.int32))

    tensors = {"weight_packed": pack(linear.codes), "weight_scale": torch.from_numpy(linear.scales),
               "weight_zero_point": pack(linear.zeros.T).T, "weight_shape": torch.tensor([linear.out, linear.inputs])}
    folder = save(tmp_path / "theirs", tensors, make_scheme(3, 32, False), "pack-quantized")
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)


@pytest.mark.parametrize("flags, largest_difference", [
    # Not asymmetric: compressed-tensors 0.20.0 sizes packed zero points wrongly when transformers makes the empty model.
    (["--method", "rtn", "--group-size", "64"], 5e-3), (["--method", "rtn", "--bits", "8", "--group-size", "-1"], 5e-3),
    # compressed-tensors rounds the activations to FP8 too, which nibble's exact mode does not.
    (["--method", "fp8"], 8),
], ids=["W4A16", "W8A16", "FP8_DYNAMIC"])
def test_transformers_computes_nibbles_logits(nibble, build_dir, smollm2, tmp_path, flags, largest_difference):
    import torch
    import transformers
    quantized = tmp_path / "quantized"
    subprocess.run([nibble, "quantize", smollm2, "--output", quantized, "--format", "compressed-tensors", *flags],
                   check=True)
    prompt = transformers.AutoTokenizer.from_pretrained(smollm2)("The capital of France is Paris, and that of").input_ids
    (tmp_path / "prompts.json").write_text(json.dumps([prompt]))
    subprocess.run([build_dir / "bin" / "nibble_logits", quantized, "exact", "1", tmp_path / "prompts.json",
                    tmp_path / "sequences.json", tmp_path / "logits.f32"], check=True)
    (sequence,) = json.loads((tmp_path / "sequences.json").read_text())
    ours = numpy.fromfile(tmp_path / "logits.f32", dtype=numpy.float32).reshape(len(sequence), -1)
    model = transformers.AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([sequence])).logits[0].numpy()
    difference = numpy.abs(ours - theirs).max()
    print(f"largest difference of a logit: {difference:.2e}")
    assert difference < largest_difference
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.8


@pytest.mark.parametrize("bits, group_size, sym", [(4, 64, True), (4, 64, False), (8, -1, True), (3, 64, False)])
def test_verify_raises_no_alarm_on_their_files(nibble, smollm2, tmp_path, bits, group_size, sym):
    """SmolLM2's first layers, with the scales that compressed-tensors computes."""
    import torch
    from compressed_tensors.quantization.utils import calculate_qparams
    from safetensors.torch import load_file
    scheme = make_scheme(bits, group_size, sym)
    tensors = {}
    for name, tensor in load_file(smollm2 / "model.safetensors").items():
        if name.startswith("model.layers.") and int(name.split(".")[2]) >= 6:
            continue
        if "_proj.weight" not in name:
            tensors[name] = tensor
            continue
        weight = tensor.float()
        groups = weight.reshape(len(weight), -1, weight.shape[1] if group_size == -1 else group_size)
        scale, zero_point = calculate_qparams(groups.amin(dim=2), groups.amax(dim=2), scheme.weights)
        packed = packed_compressor().compress(
            {"weight": weight, "weight_scale": scale.half(), "weight_zero_point": zero_point.to(torch.int8)}, scheme)
        tensors |= {name.removesuffix("weight") + suffix: found for suffix, found in packed.items()}
    folder = save(tmp_path / "theirs", {}, scheme, "pack-quantized")
    config = json.loads((smollm2 / "config.json").read_text())
    config["num_hidden_layers"] = 6
    config["quantization_config"] = json.loads((folder / "config.json").read_text())["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.torch import save_file
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    done = subprocess.run([nibble, "verify", folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
