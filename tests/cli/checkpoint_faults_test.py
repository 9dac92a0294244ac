"""Broken checkpoints, as a user meets them: one clear line on stderr and exit code 1, no crash, nothing half-written
(unittest: needs nothing but Python).

Every line of the checkpoint part of our list of what nibble must survive is here once, by its number, through the
binary. The finer cases of a parser stand beside it:

  42-44, 47  tests/formats/safetensors_test.cpp, tests/core/file_test.cpp, tests/oracle/test_formats.py;
             disk_faults_test.py (no permission)
  45, 46     tests/formats/checkpoint_test.cpp
  48         here
  49         tests/models/config_test.cpp
  50, 51     tests/formats/gptq_test.cpp, awq_test.cpp, compressed_tensors_test.cpp, fp8_test.cpp
  52         tests/formats/gptq_test.cpp, compressed_tensors_test.cpp
  53         tests/formats/squeezellm_test.cpp
  54         tests/weights/fp8_test.cpp, tests/formats/fp8_test.cpp
  55         tests/formats/gptq_test.cpp, awq_test.cpp (layouts); tests/oracle/test_verify.py (values)
  56         tests/tokenizer/tokenizer_errors_test.cpp
  57         here
  58         tests/formats/pickle_test.cpp, torch_file_test.cpp
  59         tests/formats/gguf_test.cpp, gguf_checkpoint_test.cpp
  silent     tests/oracle/test_verify.py

Of its process part quantizing has 61 in resume_test.py, 62 in faults_test.py and disk_faults_test.py, 67 in
calibration_test.py.
"""

import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
import time
import unittest

from quantize_test import NIBBLE
from tiny_model import varied_text, write_tiny_llama

DOWN = "model.layers.0.mlp.down_proj"


def read_tensors(path):
    """(header without __metadata__, data) of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    return header, bytearray(raw[8 + length:])


def write_tensors(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


class CheckpointFaults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.temporary.name)
        write_tiny_llama(cls.root / "float")
        (cls.root / "text.txt").write_text(varied_text(3000))
        calibration = ["--calibration", cls.root / "text.txt", "--samples", "16", "--seq-len", "64"]
        for name, flags in {"gptq": [], "awq": ["--format", "autoawq", "--asym"], "fp8": ["--method", "fp8"],
                            "squeezellm": ["--method", "squeezellm", "--sparsity", "1%", *calibration]}.items():
            method = [] if "--method" in flags else ["--method", "rtn", "--group-size", "32"]
            subprocess.run([NIBBLE, "quantize", cls.root / "float", "--output", cls.root / name, *method, *flags],
                           check=True, capture_output=True)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.count = 0

    def copy(self, name="float"):
        self.count += 1
        shutil.copytree(self.root / name, self.folder / f"{name}-{self.count}")
        return self.folder / f"{name}-{self.count}"

    def refused(self, folder, *parts, code=1, command=("inspect",)):
        """`nibble COMMAND FOLDER` says every part in one line and nothing on stdout."""
        done = subprocess.run([NIBBLE, *command, folder], capture_output=True, timeout=60, text=True)
        lines = [line for line in done.stderr.strip().split("\n") if "error" in line]
        self.assertEqual((done.returncode, len(lines)), (code, 1), done)
        self.assertEqual(done.stdout, "")
        for part in parts:
            self.assertIn(part, lines[0])

    def found(self, folder, where, part):
        """`nibble verify` rejects it and names the tensor."""
        done = subprocess.run([NIBBLE, "verify", folder], capture_output=True, timeout=60, text=True)
        self.assertEqual(done.returncode, 3, done)
        lines = [line for line in done.stdout.split("\n") if line.startswith(where)]
        self.assertTrue(any(part in line for line in lines), done.stdout)

    def change_config(self, folder, **fields):
        config = json.loads((folder / "config.json").read_text())
        config.update(fields)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def change_quantization(self, folder, **fields):
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"].update(fields)
        return self.change_config(folder, quantization_config=config["quantization_config"])

    def change_tensor(self, folder, name, layout, first, value):
        """Element `first` of a tensor, packed by struct's `layout`."""
        path = folder / "model.safetensors"
        header, data = read_tensors(path)
        begin = header[name]["data_offsets"][0] + first * struct.calcsize(layout)
        data[begin:begin + struct.calcsize(layout)] = struct.pack("<" + layout, value)
        write_tensors(path, header, data)
        return folder

    def test_42_lengths_of_the_header(self):
        for length, part in [(0, "0 bytes"), (2**63, "length"), (10**6, "length"), (101 * 1024 * 1024, "length")]:
            folder = self.copy()
            path = folder / "model.safetensors"
            path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
            self.refused(folder, "model.safetensors", "header")

    def test_43_what_the_header_is(self):
        header, data = read_tensors(self.root / "float" / "model.safetensors")
        name = next(iter(header))
        entry = json.dumps(header[name])
        text = json.dumps(header)
        for broken in [b"\xff" + text.encode(), b"[1]", b"", b" {}", text.encode()[:-1],
                       f'{{"{name}":{entry},{text[1:]}'.encode()]:
            folder = self.copy()
            write_tensors(folder / "model.safetensors", broken, data)
            self.refused(folder, "model.safetensors")
        folder = self.copy()
        write_tensors(folder / "model.safetensors", text.encode() + b"   ", data)
        subprocess.run([NIBBLE, "inspect", folder], check=True, capture_output=True)

    def test_44_places_and_shapes(self):
        for change, part in [({"data_offsets": [8, 4]}, "data_offsets"), ({"data_offsets": [0, 10**12]}, "outside"),
                             ({"shape": [2**40, 2**40]}, "shape"), ({"shape": [3]}, "bytes"),
                             ({"shape": [-1, 64]}, "shape"), ({"dtype": "F99"}, "F99")]:
            folder = self.copy()
            header, data = read_tensors(folder / "model.safetensors")
            header["model.norm.weight"].update(change)
            write_tensors(folder / "model.safetensors", header, data)
            self.refused(folder, "model.norm.weight")
        for gap in (b"", b"\0" * 8):  # an overlap, a hole
            folder = self.copy()
            header, data = read_tensors(folder / "model.safetensors")
            last = max(header, key=lambda name: header[name]["data_offsets"][1])
            shift = 8 if gap else -8
            header[last]["data_offsets"] = [offset + shift for offset in header[last]["data_offsets"]]
            write_tensors(folder / "model.safetensors", header, data + gap)
            self.refused(folder, "model.safetensors")

    def test_45_shards_and_their_index(self):
        header, data = read_tensors(self.root / "float" / "model.safetensors")
        names = list(header)

        def shards(weight_map, files=("1.safetensors", "2.safetensors")):
            folder = self.copy()
            whole = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").unlink()
            for file in files:
                (folder / file).write_bytes(whole)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
            return folder
        self.refused(shards({names[0]: "3.safetensors"}), "3.safetensors")
        self.refused(shards({"absent": "1.safetensors"}), "1.safetensors should hold absent")
        self.refused(shards({names[0]: "../1.safetensors"}), names[0], "file name in this folder")
        self.refused(shards({names[0]: "1.safetensors", names[1]: "2.safetensors"}), "two shards")
        folder = shards({name: "1.safetensors" for name in names}, ["1.safetensors"])
        (folder / "1.safetensors").write_bytes((folder / "1.safetensors").read_bytes()[:-100])
        self.refused(folder, "1.safetensors", "outside")
        self.found(folder, f"{sorted(names)[0]} and {len(names) - 1} more", "outside")

    def test_46_a_git_lfs_pointer(self):
        folder = self.copy()
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        self.refused(folder, "model.safetensors", "git lfs pull")

    def test_47_what_is_no_readable_file(self):
        def without_weights():
            folder = self.copy()
            (folder / "model.safetensors").unlink()
            return folder, folder / "model.safetensors"
        folder, path = without_weights()
        path.touch()
        self.refused(folder, "model.safetensors", "0 bytes are too few")
        folder, path = without_weights()
        path.mkdir()
        self.refused(folder, "model.safetensors", "not a regular file")
        folder, path = without_weights()
        os.mkfifo(path)
        self.refused(folder, "model.safetensors", "not a regular file")
        for target in ["absent", "model.safetensors"]:  # dangling, and to itself
            folder, path = without_weights()
            path.symlink_to(target)
            self.refused(folder, "model.safetensors")
        if os.getuid() != 0:
            folder = self.copy()
            (folder / "model.safetensors").chmod(0)
            self.refused(folder, "model.safetensors", "ermission")

    def test_48_a_file_cut_while_it_is_mapped(self):
        """SIGBUS becomes one line and exit code 1: a file of 2 GB, most of it a hole, is cut while verify reads it."""
        folder = self.copy()
        path = folder / "model.safetensors"
        header, data = read_tensors(path)
        size = 1 << 31
        header["zz.big"] = {"dtype": "F16", "shape": [size // 2], "data_offsets": [len(data), len(data) + size]}
        write_tensors(path, header, data)
        os.truncate(path, path.stat().st_size + size)
        running = subprocess.Popen([NIBBLE, "verify", folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        maps = pathlib.Path(f"/proc/{running.pid}/maps")
        while str(path) not in maps.read_text():
            self.assertIsNone(running.poll(), "verify ended before it opened the file")
            time.sleep(0.001)
        os.truncate(path, 4096)
        _, error = running.communicate(timeout=60)
        self.assertEqual((running.returncode, error), (
            1, f"nibble: error: {path}: the file was truncated or became unreadable while it was in use\n"))

    def test_49_config_json(self):
        folder = self.copy()
        (folder / "config.json").unlink()
        self.refused(folder, "no config.json")
        folder = self.copy()
        (folder / "config.json").write_text("{")
        self.refused(folder, "config.json")
        for change, part in [({"hidden_size": 0}, "hidden_size"), ({"num_attention_heads": 5}, "num_attention_heads"),
                             ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
                             ({"rope_scaling": {"rope_type": "odd", "factor": 2}}, "odd")]:
            self.refused(self.change_config(self.copy(), **change), part,
                         command=("quantize", "--method", "rtn", "--output", self.folder / "none"))
        self.refused(self.change_config(self.copy(), architectures=["Mamba"]), "Mamba", command=("verify",))
        folder = self.change_config(self.copy(), vocab_size=7, auto_map={"AutoModel": "evil.py--Evil"})
        (folder / "evil.py").write_text("raise SystemExit('executed')")
        self.found(folder, "model.embed_tokens.weight", "expected shape [7, 64], found")

    def test_50_quantization_config(self):
        self.refused(self.change_quantization(self.copy("gptq"), bits=5), "bits 5")
        self.refused(self.change_quantization(self.copy("gptq"), group_size=0), "group_size 0")
        self.found(self.change_quantization(self.copy("gptq"), group_size=48), DOWN, "expected")
        self.found(self.change_quantization(self.copy("gptq"), group_size=-1), DOWN, "expected")
        self.found(self.change_quantization(self.copy("gptq"), quant_method="awq", version="gemm"), DOWN, "GPTQ's layout")
        folder = self.change_quantization(self.copy("gptq"), desc_act=True)
        header, data = read_tensors(folder / "model.safetensors")
        header[f"{DOWN}.g_idy"] = header.pop(f"{DOWN}.g_idx")
        write_tensors(folder / "model.safetensors", header, data)
        self.found(folder, DOWN, "g_idx is missing")
        self.refused(self.copy("gptq"), "gptq", "awq", command=("serve", "--port", "0", "--quantization", "awq"))
        self.refused(self.change_quantization(self.copy("awq"), modules_to_not_convert=7), "modules_to_not_convert")

    def test_51_and_52_scales_shapes_and_g_idx(self):
        for value, part in [(math.nan, "is NaN"), (math.inf, "is infinite"), (1e-7, "denormal"), (0, "zero")]:
            self.found(self.change_tensor(self.copy("gptq"), f"{DOWN}.scales", "e", 3, value), f"{DOWN}.scales", part)
        for format_name in ("gptq", "awq"):
            for suffix in ("qweight", "qzeros", "scales"):
                for change in (list.reverse, lambda shape: shape.insert(0, 1)):
                    folder = self.copy(format_name)
                    header, data = read_tensors(folder / "model.safetensors")
                    change(header[f"{DOWN}.{suffix}"]["shape"])
                    write_tensors(folder / "model.safetensors", header, data)
                    self.found(folder, DOWN, "expected")
        for value in (3, -4, 2**31 - 1):
            self.found(self.change_tensor(self.copy("gptq"), f"{DOWN}.g_idx", "i", 3, value), DOWN, f"entry {value}")
        # Unsorted groups, and a negative index as Python has it, are read as they are; the config should say so.
        self.found(self.change_tensor(self.copy("gptq"), f"{DOWN}.g_idx", "i", 3, -1), f"{DOWN}.g_idx", "desc_act false")

    def test_53_tables_and_sparse_parts(self):
        def nth(name, layout, i):
            header, data = read_tensors(self.root / "squeezellm" / "model.safetensors")
            return struct.unpack_from("<" + layout, data, header[name]["data_offsets"][0] + i * struct.calcsize(layout))[0]
        for value in (math.nan, math.inf):
            self.found(self.change_tensor(self.copy("squeezellm"), f"{DOWN}.lookup_table", "e", 5, value), DOWN,
                       "is NaN" if math.isnan(value) else "is infinite")
        # A table of 8 entries is one of 3 bits, for which there are too many words.
        for shape, part in [([64, 8], "qweight: expected"), ([64 * 16], "lookup_table"), ([16, 64], "lookup_table")]:
            folder = self.copy("squeezellm")
            header, data = read_tensors(folder / "model.safetensors")
            entry = header[f"{DOWN}.lookup_table"]
            entry["shape"], removed = shape, entry["data_offsets"][1] - entry["data_offsets"][0] - 2 * math.prod(shape)
            end = entry["data_offsets"][1]
            entry["data_offsets"][1] -= removed
            for other in header.values():
                if other["data_offsets"][0] >= end:
                    other["data_offsets"] = [offset - removed for offset in other["data_offsets"]]
            write_tensors(folder / "model.safetensors", header, data[:end - removed] + data[end:])
            self.found(folder, DOWN, part)
        last = nth(f"{DOWN}.rows", "i", 64)
        self.assertGreater(last, 0)
        for i, value in [(0, 1), (3, 2**31 - 1), (3, -1), (64, last + 1), (64, last - 1)]:
            self.found(self.change_tensor(self.copy("squeezellm"), f"{DOWN}.rows", "i", i, value), DOWN, "rows")
        for value in (96, -1, 2**31 - 1):
            self.found(self.change_tensor(self.copy("squeezellm"), f"{DOWN}.cols", "i", 0, value), DOWN, "col")
        self.found(self.change_tensor(self.copy("squeezellm"), f"{DOWN}.vals", "f", 0, math.nan), DOWN, "NaN")

    def test_54_fp8_scales_and_codes(self):
        for value, part in [(0, "zero"), (math.nan, "is NaN"), (math.inf, "is infinite")]:
            self.found(self.change_tensor(self.copy("fp8"), f"{DOWN}.weight_scale", "f", 0, value),
                       f"{DOWN}.weight_scale", part)
        self.found(self.change_tensor(self.copy("fp8"), f"{DOWN}.weight_scale", "f", 0, -0.5), DOWN,
                   "weight_scale: found -0.500000; scales must be positive")
        self.found(self.change_tensor(self.copy("fp8"), f"{DOWN}.weight", "B", 7, 0x7f), f"{DOWN}.weight", "is NaN")
        folder = self.copy("fp8")
        header, data = read_tensors(folder / "model.safetensors")
        header[f"{DOWN}.weight"]["dtype"] = "F8_E5M2"
        write_tensors(folder / "model.safetensors", header, data)
        self.found(folder, f"{DOWN}.weight", "F8_E5M2")

    def test_55_the_layouts_of_awq_and_gptq(self):
        self.found(self.change_quantization(self.copy("awq"), quant_method="gptq", sym=False), DOWN, "AWQ's layout")
        self.found(self.change_quantization(self.copy("gptq"), quant_method="awq", version="gemm"), DOWN, "GPTQ's layout")

    def test_56_and_57_tokenizer_and_generation_config(self):
        generate = ("generate", "--prompt", "a", "--max-tokens", "1")
        folder = self.copy()
        (folder / "tokenizer.json").unlink()
        self.refused(folder, "tokenizer.json", command=generate)
        for text in ["", "{", "[]", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
                     '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}']:
            folder = self.copy()
            (folder / "tokenizer.json").write_text(text)
            self.refused(folder, "tokenizer.json", command=generate)
        for text, part in [('{"temperature": "hot"}', "temperature"), ('{"top_k": 1.5}', "top_k"), ("[", "")]:
            folder = self.copy()
            (folder / "generation_config.json").write_text(text)
            self.refused(folder, "generation_config.json", part, command=("serve", "--port", "0"))

    def test_58_pickles_run_nothing(self):
        folder = self.copy()
        (folder / "model.safetensors").unlink()
        marker = folder / "executed"
        evil = b"\x80\x02cos\nsystem\nX" + struct.pack("<I", len(f"touch {marker}")) + f"touch {marker}".encode() + b"\x85R."
        (folder / "pytorch_model.bin").write_bytes(evil)
        self.refused(folder, "pytorch_model.bin")
        self.assertFalse(marker.exists())

    def test_59_gguf_by_hand(self):
        def file(magic=b"GGUF", version=3, tensors=0, pairs=0, rest=b""):
            self.count += 1
            path = self.folder / f"{self.count}.gguf"
            path.write_bytes(magic + struct.pack("<IQQ", version, tensors, pairs) + rest)
            return path

        def pair(key, value_type, value):
            return struct.pack("<Q", len(key)) + key + struct.pack("<I", value_type) + value
        alignment = pair(b"general.alignment", 4, struct.pack("<I", 3))
        same = pair(b"a", 4, struct.pack("<I", 1))
        tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 32, 0, 1 << 40)
        overflow = struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)
        for path in [file(magic=b"GGML"), file(version=0), file(version=99), file(pairs=2**64 - 1), file(tensors=2**63),
                     file(pairs=1, rest=alignment), file(pairs=2, rest=same * 2), file(tensors=1, rest=tensor),
                     file(tensors=1, rest=overflow), file(pairs=1)]:
            self.refused(path, path.name)


if __name__ == "__main__":
    unittest.main()
