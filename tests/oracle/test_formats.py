"""Checkpoints: safetensors against its reference implementation, GPTQ and AWQ against GPTQModel's and AutoAWQ's own
packing code (--oracle)."""

import json
import struct
import subprocess

import numpy
import pytest
import safetensors
import safetensors.numpy

MODULE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="session")
def tool(build_dir):
    path = build_dir / "bin" / "nibble_checkpoint_tool"
    if not path.is_file():
        pytest.fail(f"{path} is not built: run scripts/build")
    return path


def make_folder(folder, config=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return folder


def test_reads_what_safetensors_writes(tool, tmp_path):
    folder = make_folder(tmp_path / "m")
    random = numpy.random.default_rng(1)
    tensors = {
        "f32": random.normal(size=(3, 5)).astype(numpy.float32), "f16": random.normal(size=(7,)).astype(numpy.float16),
        "i64": numpy.arange(4), "i32": numpy.arange(6, dtype=numpy.int32).reshape(1, 2, 3),
        "i16": numpy.arange(3, dtype=numpy.int16), "i8": numpy.arange(5, dtype=numpy.int8),
        "u8": numpy.zeros((0, 4), numpy.uint8), "näme \"quoted\"\n": numpy.array(2.5, numpy.float32),
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    listed = json.loads(subprocess.run([tool, "list", folder], check=True, capture_output=True).stdout)
    assert {t["name"]: tuple(t["shape"]) for t in listed} == {name: t.shape for name, t in tensors.items()}
    for name in ("f32", "f16", "näme \"quoted\"\n"):
        subprocess.run([tool, "tensor", folder, name, tmp_path / "out"], check=True)
        values = numpy.fromfile(tmp_path / "out", dtype=numpy.float32).reshape(tensors[name].shape)
        numpy.testing.assert_array_equal(values, tensors[name].astype(numpy.float32))


def test_accepts_a_broken_file_only_where_the_reference_does(tool, tmp_path):
    """400 files with a few bytes of the header changed. nibble may refuse more (duplicate names), never less."""
    folder = make_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    header = json.dumps({"__metadata__": {"format": "pt"},
                         "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
                         "b": {"dtype": "U8", "shape": [4], "data_offsets": [12, 16]}}).encode()
    good = struct.pack("<Q", len(header)) + header + bytes(16)
    random = numpy.random.default_rng(2)
    alphabet = b'0123456789[]{}:,"ab\x00\xff -.eFU'
    outcomes = {True: 0, False: 0}
    for _ in range(400):
        broken = bytearray(good)
        for _ in range(random.integers(1, 3)):
            broken[random.integers(0, 8 + len(header))] = random.choice(list(alphabet))
        path.write_bytes(broken)
        try:
            with safetensors.safe_open(path, "numpy") as file:
                names = list(file.keys())
            reference = True
        except safetensors.SafetensorError:
            reference = False
        result = subprocess.run([tool, "list", folder], capture_output=True)
        ours = result.returncode == 0
        # A changed dtype can name a type that nibble has no use for: it reads the file and refuses the tensor.
        ours = ours or b"is not supported" in result.stderr
        assert result.returncode in (0, 1), bytes(broken)
        assert reference or not ours, bytes(broken)
        if reference and not ours:
            assert len(set(names)) < 2 or b"twice" in result.stderr, (bytes(broken), result.stderr)
        outcomes[ours] += 1
    assert outcomes[True] > 5 and outcomes[False] > 100, outcomes


# Packed formats

peer_parameters = pytest.mark.parametrize("bits, group_size, checkpoint_format, act_order, sym", [
    (4, 32, "gptq", False, True), (4, 32, "gptq", True, True), (4, 64, "gptq_v2", False, False),
    (4, 32, "gptq_v2", True, False), (4, 32, "gptq", False, False), (2, 32, "gptq_v2", False, False),
    (2, 32, "gptq", False, True), (3, 32, "gptq_v2", False, False), (3, 32, "gptq", False, True),
    (3, 64, "gptq", True, False), (8, 32, "gptq_v2", False, False), (8, 64, "gptq", False, True),
    (8, 32, "gptq_v2", True, False), (4, -1, "gptq", False, True),
])


class Linear:
    """A random quantized linear [out, in] and its exact values."""

    def __init__(self, bits, group_size, act_order, sym, smallest_zero, out_features=96, in_features=192):
        random = numpy.random.default_rng(bits * 1000 + group_size + act_order)
        self.bits, self.out, self.inputs = bits, out_features, in_features
        self.group_size = in_features if group_size == -1 else group_size
        groups = in_features // self.group_size
        self.codes = random.integers(0, 2**bits, (out_features, in_features)).astype(numpy.uint8)
        self.scales = (random.uniform(0.5, 2, (out_features, groups)) * 0.01).astype(numpy.float16)
        self.zeros = random.integers(smallest_zero, 2**bits, (out_features, groups)).astype(numpy.int16)
        if sym:
            self.zeros[:] = 2 ** (bits - 1)
        self.g_idx = numpy.arange(in_features, dtype=numpy.int32) // self.group_size
        if act_order:
            random.shuffle(self.g_idx)
        centred = self.codes.astype(numpy.int32) - self.zeros[:, self.g_idx]
        self.values = self.scales.astype(numpy.float32)[:, self.g_idx] * centred.astype(numpy.float32)

    def spec(self, folder, with_g_idx):
        folder.mkdir()
        self.codes.tofile(folder / "codes")
        self.scales.astype(numpy.float32).tofile(folder / "scales")
        self.zeros.tofile(folder / "zeros")
        self.g_idx.tofile(folder / "g_idx")
        return {"module": MODULE, "out": self.out, "in": self.inputs, "bits": self.bits,
                "group_size": self.group_size, "codes": str(folder / "codes"), "scales": str(folder / "scales"),
                "zeros": str(folder / "zeros"), "g_idx": str(folder / "g_idx") if with_g_idx else None}


def write_with_nibble(tool, tmp_path, linear, spec):
    spec["linears"] = [linear.spec(tmp_path / "raw", with_g_idx=spec.get("desc_act", False))]
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    subprocess.run([tool, "write", tmp_path / "spec.json", tmp_path / "ours"], check=True)
    return tmp_path / "ours"


def read_with_nibble(tool, tmp_path, folder, linear):
    (tmp_path / "modules.json").write_text(json.dumps({MODULE: [linear.out, linear.inputs]}))
    subprocess.run([tool, "dump", folder, tmp_path / "modules.json", tmp_path], check=True)
    return numpy.fromfile(tmp_path / f"{MODULE}.f32", dtype=numpy.float32).reshape(linear.out, linear.inputs)


def load_torch(folder):
    from safetensors.torch import load_file
    return {name.removeprefix(MODULE + "."): t for name, t in load_file(folder / "model.safetensors").items()}


def save_torch(folder, tensors, quantization_config):
    from safetensors.torch import save_file
    make_folder(folder, {"model_type": "llama", "quantization_config": quantization_config})
    save_file({f"{MODULE}.{name}": t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors",
              {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def gptqmodel(build_dir):
    pytest.importorskip("torch")
    import peers
    return peers.GptqModel(build_dir / "oracle" / "peers")


@pytest.fixture(scope="session")
def autoawq(build_dir):
    pytest.importorskip("torch")
    import peers
    return peers.AutoAwq(build_dir / "oracle" / "peers")


@pytest.mark.torch
@peer_parameters
def test_gptqmodel_unpacks_what_nibble_writes_to_exactly_its_values(
        tool, tmp_path, gptqmodel, bits, group_size, checkpoint_format, act_order, sym):
    import torch
    linear = Linear(bits, group_size, act_order, sym, smallest_zero=1 if checkpoint_format == "gptq" else 0)
    folder = write_with_nibble(tool, tmp_path, linear, {
        "format": checkpoint_format, "bits": bits, "group_size": group_size, "sym": sym, "desc_act": act_order})
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["checkpoint_format"] == checkpoint_format and config["desc_act"] == act_order
    theirs = gptqmodel.dequantize(load_torch(folder), bits, linear.group_size, checkpoint_format, torch.float32)
    numpy.testing.assert_array_equal(theirs.numpy(), linear.values)
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)


@pytest.mark.torch
@peer_parameters
def test_nibble_reads_what_gptqmodel_packs(
        tool, tmp_path, gptqmodel, bits, group_size, checkpoint_format, act_order, sym):
    import torch
    linear = Linear(bits, group_size, act_order, sym, smallest_zero=1 if checkpoint_format == "gptq" else 0)
    tensors = gptqmodel.pack(torch.from_numpy(linear.values), torch.from_numpy(linear.scales.astype(numpy.float32)),
                             torch.from_numpy(linear.zeros.astype(numpy.int32)), torch.from_numpy(linear.g_idx), bits,
                             linear.group_size, checkpoint_format)
    folder = save_torch(tmp_path / "theirs", tensors, {
        "quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": act_order, "sym": sym,
        "checkpoint_format": checkpoint_format})
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)
    ours = write_with_nibble(tool, tmp_path, linear, {
        "format": checkpoint_format, "bits": bits, "group_size": group_size, "sym": sym, "desc_act": act_order})
    for name, tensor in load_torch(ours).items():  # and the packed words are the same
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), name


@pytest.mark.torch
@pytest.mark.parametrize("group_size", [32, 64, 192])
def test_autoawq_unpacks_what_nibble_writes_to_exactly_its_values(tool, tmp_path, autoawq, group_size):
    import torch
    linear = Linear(4, group_size, act_order=False, sym=False, smallest_zero=0)
    folder = write_with_nibble(tool, tmp_path, linear,
                               {"format": "awq", "bits": 4, "group_size": group_size, "sym": False})
    tensors = load_torch(folder)
    theirs = autoawq.dequantize(tensors, group_size, torch.float32)
    numpy.testing.assert_array_equal(theirs.numpy(), linear.values)
    half = autoawq.dequantize(tensors, group_size, torch.float16)
    numpy.testing.assert_array_equal(half.numpy(), linear.values.astype(numpy.float16))
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config == {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True,
                      "version": "gemm", "modules_to_not_convert": None}


@pytest.mark.torch
@pytest.mark.parametrize("group_size, side_file", [(32, None), (64, "quant_config.json")])
def test_nibble_reads_what_autoawq_packs(tool, tmp_path, autoawq, group_size, side_file):
    import torch
    linear = Linear(4, group_size, act_order=False, sym=False, smallest_zero=0)
    tensors = autoawq.pack(torch.from_numpy(linear.values), torch.from_numpy(linear.scales.T.copy()),
                           torch.from_numpy(linear.zeros.T.astype(numpy.int32)), group_size)
    config = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "GEMM"}
    folder = save_torch(tmp_path / "theirs", tensors, config)
    if side_file:  # as llm-awq and early AutoAWQ had it
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        (folder / side_file).write_text(json.dumps(
            {"w_bit": 4, "q_group_size": group_size, "zero_point": True, "version": "GEMM"}))
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)
    ours = load_torch(write_with_nibble(tool, tmp_path, linear,
                                        {"format": "awq", "bits": 4, "group_size": group_size, "sym": False}))
    for name, tensor in ours.items():
        assert torch.equal(tensor, tensors[name]), name
