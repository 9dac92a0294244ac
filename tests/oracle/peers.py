"""Packing code of AutoAWQ and GPTQModel, loaded by file path from their pinned sdists.

The packages themselves do not import here (they want kernels and old transformers), but their packing code needs
nothing except torch: modules it imports and does not call are stand-ins.
"""

import ast
import hashlib
import importlib.util
import pathlib
import subprocess
import sys
import tarfile
import types
from unittest import mock

import numpy
import torch

SHA256 = {
    "autoawq-0.2.9": "f3397687118c7d23c769de0de05ff1dca8950a2644acbe1b6eb1399c691fe7ee",
    "gptqmodel-7.7.0": "039874c39fb56ba75b750dd4870968e7fe83b6ca28890a53e94ad3c46be699d0",
}


def unpack_sdist(release, folder):
    """The unpacked sdist of `release` ("autoawq-0.2.9") under `folder`, downloaded where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{release}.tar.gz"
    if not archive.exists():
        name, version = release.rsplit("-", 1)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation",
                        "--no-binary", ":all:", "--dest", folder, f"{name}=={version}"], check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert digest == SHA256[release], f"{archive} has sha256 {digest}"
    if not (folder / release).exists():
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder / release


def load(name, path, stand_ins):
    """The module at `path` as `name`; modules of `stand_ins` answer its imports while it loads."""
    packages = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
    modules = {package: types.ModuleType(package) for package in packages if package not in stand_ins}
    for module in modules.values():
        module.__path__ = []
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, modules | stand_ins | {name: loaded}):
        spec.loader.exec_module(loaded)
    return loaded


def functions_of(path, names, namespace):
    """Only these functions of a file whose imports do not resolve here, run in `namespace`."""
    tree = ast.parse(pathlib.Path(path).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in tree.body} == set(names)
    future = ast.ImportFrom(module="__future__", names=[ast.alias(name="annotations")], level=0)
    tree.body.insert(0, future)  # annotations may name what is not there
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), namespace)  # noqa: S102 the peer's own code
    return types.SimpleNamespace(**{name: namespace[name] for name in names})


class AutoAwq:
    def __init__(self, folder):
        root = unpack_sdist("autoawq-0.2.9", folder) / "awq"
        packing = load("awq.utils.packing_utils", root / "utils" / "packing_utils.py", {})
        triton = types.ModuleType("awq.modules.triton.gemm")  # without its functions: the import fails, as meant
        gemm = load("awq.modules.linear.gemm", root / "modules" / "linear" / "gemm.py", {
            "awq.utils.packing_utils": packing,
            "awq.utils.module": mock.Mock(try_import=lambda name: (None, "")),
            "awq.utils.utils": mock.Mock(get_best_device=lambda: "cpu"),
            "awq.modules.triton.gemm": triton,
        })
        self._gemm = gemm
        self._packing = packing

    def pack(self, weight, scales, zeros, group_size):
        """weight [out, in], scales and zeros [groups, out] → {suffix: tensor} as AutoAWQ saves it."""
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        packed = self._gemm.WQLinear_GEMM.from_linear(linear, 4, group_size, scales=scales, zeros=zeros)
        return {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}

    def dequantize(self, tensors, group_size, dtype):
        """[out, in], computed in `dtype`."""
        weight = self._packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"].to(dtype), 4,
                                               group_size)
        return weight.T


class GptqModel:
    def __init__(self, folder):
        root = unpack_sdist("gptqmodel-7.7.0", folder) / "gptqmodel"
        planar = load("gptqmodel.utils.planar_packing", root / "utils" / "planar_packing.py", {})
        others = ["adapter", "adapter.adapter", "models", "models._const", "quantization", "utils", "utils.backend",
                  "utils.env", "utils.logger", "utils.safe", "utils.torch"]
        stand_ins = {f"gptqmodel.{name}": mock.MagicMock() for name in others}
        self._qlinear = load("gptqmodel.nn_modules.qlinear", root / "nn_modules" / "qlinear" / "__init__.py",
                             stand_ins | {"gptqmodel.utils.planar_packing": planar})
        dequant = functions_of(
            root / "utils" / "model_dequant.py",
            ["unpack_cols", "pack_cols", "_require_int32_words_for_3bit", "_unpack_cols_3bit", "_pack_cols_3bit",
             "_shift_gptq_qzeros", "_correct_gptq_v1_qzeros", "_revert_gptq_v1_qzeros_correction"],
            {"torch": torch, "PLANAR_BITS": planar.PLANAR_BITS})
        self._convert = functions_of(
            root / "utils" / "model.py", ["convert_gptq_v1_to_v2_format_module", "convert_gptq_v2_to_v1_format_module"],
            {"torch": torch, "log": mock.MagicMock(), "BaseQuantLinear": self._qlinear.BaseQuantLinear,
             **vars(dequant)})

    def _module(self, bits, group_size, in_features):
        """PackableQuantLinear with the fields that packing reads, past a constructor that asks about devices."""
        module = self._qlinear.PackableQuantLinear.__new__(self._qlinear.PackableQuantLinear)
        torch.nn.Module.__init__(module)
        module.bits, module.group_size, module.in_features = bits, group_size, in_features
        module.maxq, module.planar, module.enable_wf_unsqueeze = 2**bits - 1, False, True
        module.pack_dtype, module.pack_dtype_bits, module.pack_factor = torch.int32, 32, 32 // bits
        module.pack_np_dtype, module.pack_np_math_dtype = numpy.int32, numpy.uint32
        module.dequant_dtype = torch.int16 if bits == 8 else torch.int8
        module._qzeros_format = 1
        return module

    def pack(self, weight, scales, zeros, g_idx, bits, group_size, checkpoint_format):
        """weight [out, in], scales and zeros [out, groups] → {suffix: tensor} as GPTQModel saves it."""
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight
        module = self._module(bits, group_size, weight.shape[1])
        module.pack_original(linear, scales, zeros, g_idx)
        if checkpoint_format == "gptq":
            self._convert.convert_gptq_v2_to_v1_format_module(module, mock.Mock(bits=bits, pack_dtype=torch.int32))
        return {name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "g_idx")}

    def dequantize(self, tensors, bits, group_size, checkpoint_format, dtype):
        """[out, in], computed in `dtype`."""
        module = self._module(bits, group_size, tensors["g_idx"].shape[0])
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor.clone())
        if checkpoint_format == "gptq":
            self._convert.convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
        module.scales = module.scales.to(dtype)
        return module.dequantize_weight().T
