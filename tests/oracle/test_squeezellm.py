"""SqueezeLLM checkpoints: nibble's files read by a few lines of numpy, files of numpy and of torch.save read by nibble.
No peer serves the format any more, so the layout is re-implemented here from its description."""

import json
import os
import subprocess

import numpy
import pytest
import safetensors.numpy

MODULE = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="session")
def tool(build_dir):
    path = build_dir / "bin" / "nibble_checkpoint_tool"
    if not path.is_file():
        pytest.fail(f"{path} is not built: run scripts/build")
    return path


class Linear:
    """A random codebook linear [out, in], its stored tensors and its exact values."""

    def __init__(self, bits, sparse, out_features=48, in_features=160):
        random = numpy.random.default_rng(bits + 10 * sparse)
        self.bits, self.out, self.inputs = bits, out_features, in_features
        self.codes = random.integers(0, 2**bits, (out_features, in_features)).astype(numpy.uint8)
        self.table = random.normal(size=(out_features, 2**bits)).astype(numpy.float32)
        self.values = numpy.take_along_axis(self.table, self.codes.astype(numpy.int64), axis=1)
        self.rows = None
        if sparse:
            mask = random.random((out_features, in_features)) < 0.03
            extra = numpy.where(mask, random.normal(size=mask.shape), 0).astype(numpy.float32)
            self.rows = numpy.concatenate([[0], mask.sum(axis=1).cumsum()]).astype(numpy.int32)
            self.cols = numpy.nonzero(mask)[1].astype(numpy.int32)
            self.vals = extra[mask]
            self.values = self.values + extra

    def tensors(self):
        """As the reference packs them: bit i of word w, output n is bit 32 w + i of the codes' stream of n."""
        bits = ((self.codes[:, :, None] >> numpy.arange(self.bits)) & 1).reshape(self.out, -1)
        words = numpy.packbits(bits.astype(numpy.uint8), axis=1, bitorder="little").view(numpy.int32)
        tensors = {"qweight": numpy.ascontiguousarray(words.T), "lookup_table": self.table}
        if self.rows is not None:
            tensors |= {"rows": self.rows, "cols": self.cols, "vals": self.vals,
                        "startrows": numpy.zeros(10, numpy.int32)}
        return tensors

    def spec(self, folder):
        folder.mkdir()
        spec = {"module": MODULE, "out": self.out, "in": self.inputs, "bits": self.bits}
        arrays = {"codes": self.codes, "lookup_table": self.table}
        if self.rows is not None:
            arrays |= {"rows": self.rows, "cols": self.cols, "vals": self.vals}
            spec["nnz"] = len(self.cols)
        for name, array in arrays.items():
            array.tofile(folder / name)
            spec[name] = str(folder / name)
        return spec


def unpack(tensors, bits):
    """W [out, in] from the stored tensors."""
    words = tensors["qweight"].T.astype(numpy.int32).copy()
    stream = numpy.unpackbits(words.view(numpy.uint8), axis=1, bitorder="little")
    codes = (stream.reshape(words.shape[0], -1, bits) << numpy.arange(bits)).sum(axis=2)
    values = numpy.take_along_axis(tensors["lookup_table"].astype(numpy.float32), codes, axis=1)
    if "rows" in tensors:
        for row, (begin, end) in enumerate(zip(tensors["rows"], tensors["rows"][1:])):
            for j in range(begin, end):
                values[row, tensors["cols"][j]] += tensors["vals"][j]
    return values


def read_with_nibble(tool, tmp_path, folder, linear):
    (tmp_path / "modules.json").write_text(json.dumps({MODULE: [linear.out, linear.inputs]}))
    subprocess.run([tool, "dump", folder, tmp_path / "modules.json", tmp_path], check=True)
    return numpy.fromfile(tmp_path / f"{MODULE}.f32", dtype=numpy.float32).reshape(linear.out, linear.inputs)


parameters = pytest.mark.parametrize("bits, sparse", [(3, False), (3, True), (4, False), (4, True)])


@parameters
def test_numpy_reads_what_nibble_writes(tool, tmp_path, bits, sparse):
    linear = Linear(bits, sparse)
    spec = {"format": "squeezellm", "bits": bits, "group_size": -1, "sym": False,
            "linears": [linear.spec(tmp_path / "raw")]}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    subprocess.run([tool, "write", tmp_path / "spec.json", tmp_path / "ours"], check=True)
    stored = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    stored = {name.removeprefix(MODULE + "."): tensor for name, tensor in stored.items()}
    expected = linear.tensors()
    expected.pop("startrows", None)
    assert set(stored) == set(expected)
    for name, tensor in stored.items():
        assert tensor.dtype == expected[name].dtype, name
        numpy.testing.assert_array_equal(tensor, expected[name], err_msg=name)
    numpy.testing.assert_array_equal(unpack(stored, bits), linear.values)


@parameters
def test_nibble_reads_what_numpy_writes(tool, tmp_path, bits, sparse):
    linear = Linear(bits, sparse)
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "quant_config.json").write_text(json.dumps({"wbits": bits}))
    safetensors.numpy.save_file({f"{MODULE}.{name}": t for name, t in linear.tensors().items()},
                                folder / "model.safetensors", {"format": "pt"})
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)


# What torch.save writes


@pytest.mark.torch
@parameters
def test_nibble_reads_what_torch_saves(tool, tmp_path, bits, sparse):
    import torch
    linear = Linear(bits, sparse)
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    state = {f"{MODULE}.{name}": torch.from_numpy(t) for name, t in linear.tensors().items()}
    state[f"sparse_threshold.{MODULE}"] = 12
    torch.save(state, folder / f"sq-tiny-w{bits}-s45.pt")
    numpy.testing.assert_array_equal(read_with_nibble(tool, tmp_path, folder, linear), linear.values)


@pytest.mark.torch
@parameters
def test_convert_makes_safetensors_of_what_torch_saves(nibble, tmp_path, bits, sparse):
    import torch
    linear = Linear(bits, sparse)
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    state = {f"{MODULE}.{name}": torch.from_numpy(t) for name, t in linear.tensors().items()}
    torch.save(state | {"model.norm.weight": torch.ones(4)}, folder / f"sq-tiny-w{bits}.pt")
    subprocess.run([nibble, "convert", folder, "--format", "squeezellm", "--output", tmp_path / "ours"], check=True)
    stored = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    numpy.testing.assert_array_equal(stored.pop("model.norm.weight"), numpy.ones(4, numpy.float32))
    stored = {name.removeprefix(MODULE + "."): tensor for name, tensor in stored.items()}
    for name, tensor in linear.tensors().items():
        if name != "startrows":  # recomputable, and only the reference's kernel reads it
            numpy.testing.assert_array_equal(stored.pop(name), tensor, err_msg=name)
    assert not stored
    config = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["wbits"], config["include_sparse"]) == ("squeezellm", bits, sparse)


@pytest.mark.torch
def test_nibble_reads_every_dtype_and_view_that_torch_saves(tool, tmp_path):
    import torch
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module = torch.nn.Linear(5, 3)
    state = module.state_dict()  # an OrderedDict with _metadata
    state |= {"f16": torch.rand(7).half(), "bf16": torch.rand(7).bfloat16(), "f64": torch.rand(2).double(),
              "i64": torch.arange(3), "u8": torch.arange(5, dtype=torch.uint8), "flag": torch.tensor([True]),
              "rows": base[1:3], "tied": base, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4),
              "parameter": torch.nn.Parameter(torch.rand(3)), "transposed": base.t()}
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save(state, folder / "pytorch_model.bin")
    for name, tensor in state.items():
        command = [tool, "tensor", folder, name, tmp_path / "out"]
        if name in ("f64", "i64", "u8", "flag", "transposed"):
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 1 or tensor.dtype in (torch.int64, torch.uint8), name
            if name == "transposed":
                assert "pytorch_model.bin: transposed: is stored with strides [1, 6]" in result.stderr
            continue
        subprocess.run(command, check=True)
        values = numpy.fromfile(tmp_path / "out", dtype=numpy.float32).reshape(tensor.shape)
        numpy.testing.assert_array_equal(values, tensor.detach().float().numpy(), err_msg=name)


@pytest.mark.torch
def test_nothing_in_a_pickle_is_executed(tool, tmp_path):
    import torch
    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({"a": torch.rand(2), "b": Evil()}, folder / "pytorch_model.bin")
    result = subprocess.run([tool, "list", folder], capture_output=True, text=True)
    assert result.returncode == 1
    assert "posix.system" in result.stderr and "pytorch_model.bin" in result.stderr
    assert not mark.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # it would have been


@pytest.mark.torch
def test_older_containers_are_refused_with_advice(tool, tmp_path):
    import torch
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({"a": torch.rand(2)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    result = subprocess.run([tool, "list", folder], capture_output=True, text=True)
    assert result.returncode == 1 and "before 1.6" in result.stderr
