"""What goes wrong while `nibble quantize` runs: a clear error, and no folder that looks complete (unittest only)."""

import json
import math
import os
import pathlib
import re
import resource
import signal
import subprocess
import tempfile
import unittest

from tiny_model import file_bytes, varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]


def limit_file_size(num_bytes):
    """Stands for a full disk: a write beyond it fails."""
    def apply():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    return apply


class Faults(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.output = self.folder / "output"
        (self.folder / "text.txt").write_text(varied_text(3000))

    def write_model(self, **options):
        write_tiny_llama(self.folder / "model", num_layers=2, **options)
        return self.folder / "model"

    def quantize(self, *flags, method="gptq", output=None, **options):
        return subprocess.run([NIBBLE, "quantize", self.folder / "model", "--method", method, "--group-size", "32",
                               "--calibration", self.folder / "text.txt", "--samples", "16", "--seq-len", "64",
                               "--output", output or self.output, *flags], capture_output=True, timeout=60, text=True,
                              **options)

    def expect_error(self, done, *parts):
        message = done.stderr.strip().rsplit("\n", 1)[-1]
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertTrue(message.startswith("nibble: error: "), message)
        for part in parts:
            self.assertIn(part, message)
        self.assertFalse((self.output / "config.json").exists())

    def test_a_disk_that_fills_up_anywhere_leaves_a_run_that_can_go_on(self):
        self.write_model()
        whole = self.folder / "whole"
        self.assertEqual(self.quantize(output=whole).returncode, 0)
        size = (whole / "model.safetensors").stat().st_size
        for limit in [100, 1000, 8192, 200_000, 264_000, 270_000, 290_000, size - 1]:
            self.expect_error(self.quantize("--resume", preexec_fn=limit_file_size(limit)), "cannot", "File too large")
        self.assertEqual(self.quantize("--resume").returncode, 0)
        self.assertEqual(file_bytes(self.output), file_bytes(whole))

    def test_a_nan_weight_is_named(self):
        self.write_model(replace={"model.layers.1.mlp.up_proj": math.nan})
        for method in ["rtn", "gptq", "awq"]:
            self.expect_error(self.quantize(method=method, output=self.folder / method),
                              "model.layers.1.mlp.up_proj: holds nan", "the checkpoint is damaged")
            self.assertFalse((self.folder / method / "config.json").exists())

    def test_a_nan_in_the_embedding_is_named_before_anything_is_written(self):
        self.write_model(replace={"model.embed_tokens": math.nan})
        self.expect_error(self.quantize(method="rtn"), "model.embed_tokens.weight", "not finite")

    def test_an_unreadable_shard_is_named(self):
        model = self.write_model()
        weights = model / "model.safetensors"
        os.truncate(weights, weights.stat().st_size - 10)
        self.expect_error(self.quantize(), "model.safetensors")
        self.assertFalse(self.output.exists())
        weights.unlink()
        weights.mkdir()
        self.expect_error(self.quantize(), "model.safetensors", "not a regular file")
        self.assertFalse(self.output.exists())

    def test_an_index_that_is_wrong_is_named(self):
        model = self.write_model()
        raw = (model / "model.safetensors").read_bytes()
        header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
        names = [name for name in header if name != "__metadata__"]
        index = model / "model.safetensors.index.json"
        for weight_map, part in [({name: "model-00001-of-00002.safetensors" for name in names}, "model-00001-of-00002"),
                                 ({**{name: "model.safetensors" for name in names}, "absent": "model.safetensors"}, "absent"),
                                 ({name: "../model.safetensors" for name in names}, "file name in this folder")]:
            index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
            self.expect_error(self.quantize(), part)
            self.assertFalse(self.output.exists())

    def test_too_little_memory_is_refused_with_the_numbers(self):
        self.write_model()
        self.expect_error(self.quantize("--max-memory", "1MB"), "quantizing one block takes about", "--max-memory is 1.0 MB")
        self.assertFalse(self.output.exists())

    def test_what_the_run_needs_is_said_first(self):
        self.write_model()
        done = self.quantize()
        self.assertRegex(done.stderr, r"needs about [\d.]+ MB of memory \([\d.]+ GB free\), [\d.]+ [KM]B of disk "
                                      r"\([\d.]+ GB free\), roughly ")

    def test_activations_in_scratch_files_give_the_same_bytes(self):
        self.write_model()
        for method, extra in [("gptq", []), ("awq", []), ("gptq", ["--drift-correction", "0.5"])]:
            outputs = []
            refused = self.quantize("--max-memory", "1MB", *extra, method=method)
            least = re.search(r"takes about ([\d.]+) MB", refused.stderr)
            limit = f"{round(float(least[1]) * 1e6) + 100_000}"  # a sixth of the activations fits beside
            for name, flags in [("memory", []), ("disk", ["--max-memory", limit])]:
                outputs.append(self.folder / f"{method}{len(extra)}-{name}")
                done = self.quantize(*flags, *extra, method=method, output=outputs[-1])
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual("go to a scratch file" in done.stderr, name == "disk", done.stderr)
            self.assertEqual(*map(file_bytes, outputs))

    def test_a_read_only_parent_is_named(self):
        self.write_model()
        self.expect_error(self.quantize(output=pathlib.Path("/proc/nibble")), "/proc/nibble")


if __name__ == "__main__":
    unittest.main()
