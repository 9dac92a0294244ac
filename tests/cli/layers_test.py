"""`--skip-layers` and `--layer`: written so that every reader agrees, refused where a format cannot (unittest only)."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

from quantize_test import tensors_of
from tiny_model import varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]
LINEARS = [f"model.layers.{i}.{name}" for i in range(2)
           for name in [*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))]]


def gptq_rule(config, module):
    """What GPTQModel and vLLM make of a module: False where it is left out, else the fields that differ."""
    for pattern, fields in config.get("dynamic", {}).items():
        if pattern.startswith("-:"):
            if re.match(pattern[2:], module):
                return False
        elif re.match(pattern.removeprefix("+:"), module):
            return fields
    return {}


class Layers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        cls.num_outputs = 0
        write_tiny_llama(cls.folder / "model", num_layers=2)
        (cls.folder / "text.txt").write_text(varied_text(3000))

    def run_quantize(self, *flags, method="gptq"):
        type(self).num_outputs += 1
        output = self.folder / f"output-{self.num_outputs}"
        done = subprocess.run([NIBBLE, "quantize", self.folder / "model", "--method", method, "--group-size", "32",
                               "--calibration", self.folder / "text.txt", "--samples", "16", "--seq-len", "64", "--output",
                               output, *flags], capture_output=True, timeout=60, text=True)
        return done, output

    def quantize(self, *flags, **options):
        """(tensors, quantization_config) of a checkpoint that nibble itself reads back."""
        done, output = self.run_quantize(*flags, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        answer = subprocess.run([NIBBLE, "generate", output, "--prompt", "abc", "--max-tokens", "2"], capture_output=True,
                                timeout=60)
        self.assertEqual(answer.returncode, 0, answer.stderr)
        return tensors_of(output), json.loads((output / "config.json").read_text())["quantization_config"]

    def check_skipped(self, tensors, skipped):
        for module in LINEARS:
            self.assertEqual(f"{module}.weight" in tensors, module in skipped, module)
            self.assertEqual(f"{module}.qweight" in tensors, module not in skipped, module)
            if module in skipped:
                self.assertEqual(tensors[f"{module}.weight"][0], "F16")

    def refused(self, *flags, parts, **options):
        done, output = self.run_quantize(*flags, **options)
        self.assertEqual(done.returncode, 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr.strip().rsplit("\n", 1)[-1])
        self.assertFalse(output.exists())

    def test_skipped_layers_stay_float_and_gptq_readers_see_it(self):
        skipped = [name for name in LINEARS if "layers.0.self_attn" in name or "layers.1.mlp.down" in name]
        tensors, config = self.quantize("--skip-layers", "layers.0.self_attn", "--skip-layers", "1.mlp.down_proj")
        self.check_skipped(tensors, skipped)
        for module in LINEARS:
            self.assertEqual(gptq_rule(config, module), False if module in skipped else {}, module)
        self.assertIs(gptq_rule(config, "model.layers.0.self_attn.qkv_proj"), False)  # as vLLM asks
        self.assertEqual(gptq_rule(config, "model.layers.1.self_attn.qkv_proj"), {})

    def test_skipped_layers_of_awq_are_substrings_that_match_nothing_else(self):
        skipped = [name for name in LINEARS if "layers.1.mlp" in name]
        tensors, config = self.quantize("--modules_to_not_convert", "layers.1.mlp", method="awq")
        self.check_skipped(tensors, skipped)
        kept = config["modules_to_not_convert"]
        for module in LINEARS:
            self.assertEqual(any(entry in module for entry in kept), module in skipped, module)
        self.assertTrue(any(entry in "model.layers.1.mlp.gate_up_proj" for entry in kept))

    def test_skipped_layers_in_other_formats(self):
        skipped = [name for name in LINEARS if name.endswith("down_proj")]
        for flags, method in [(["--format", "compressed-tensors"], "gptq"), ([], "rtn")]:
            tensors, _ = self.quantize("--skip-layers", "down_proj", *flags, method=method)
            for module in LINEARS:
                self.assertEqual(f"{module}.weight" in tensors, module in skipped, (module, method))

    def test_layers_with_bits_and_groups_of_their_own(self):
        tensors, config = self.quantize("--layer", "*.down_proj=8bit", "--layer", "layers.0.self_attn.*=4bit,group=64")
        self.assertEqual(tensors["model.layers.1.mlp.down_proj.qweight"][1], [96 * 8 // 32, 64])
        self.assertEqual(tensors["model.layers.1.mlp.up_proj.qweight"][1], [64 * 4 // 32, 96])
        self.assertEqual(tensors["model.layers.0.self_attn.o_proj.scales"][1], [1, 64])
        self.assertEqual(tensors["model.layers.1.self_attn.o_proj.scales"][1], [2, 64])
        self.assertEqual(gptq_rule(config, "model.layers.0.mlp.down_proj"), {"bits": 8, "group_size": 32})
        self.assertEqual(gptq_rule(config, "model.layers.0.self_attn.qkv_proj"), {"bits": 4, "group_size": 64})
        self.assertEqual(gptq_rule(config, "model.layers.1.self_attn.q_proj"), {})

    def test_an_asymmetric_layer_of_a_symmetric_checkpoint_says_so(self):
        _, config = self.quantize("--format", "gptq_v2", "--layer", "down_proj=8bit,asym")
        self.assertIs(config["sym"], True)
        self.assertEqual(gptq_rule(config, "model.layers.1.mlp.down_proj"), {"bits": 8, "group_size": 32, "sym": False})

    def test_what_cannot_be_is_refused_by_name(self):
        self.refused("--layer", "down_proj=8bit", method="awq", parts=["model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj: ", "4 bits only, not 8"])
        self.refused("--layer", "down_proj=group=96", method="awq", parts=["'down_proj'", "one group size"])
        self.refused("--layer", "down_proj=8bit,asym", parts=["--format gptq cannot hold a zero point of 0"])
        self.refused("--layer", "down_proj=8bit", method="fp8", parts=["'down_proj'", "fp8 has one scheme"])
        self.refused("--layer", "down_proj=7bit", parts=["--layer 'down_proj=7bit'", "2bit, 3bit, 4bit, 8bit"])
        self.refused("--layer", "down_proj=group=64", parts=["group size 64 does not divide in_features 96"])
        self.refused("--skip-layers", "q_proj", parts=["servers fuse the two"])
        self.refused("--skip-layers", "lm_heed", parts=["'lm_heed' matches no linear"])
        self.refused("--skip-layers", "*", parts=["nothing to quantize"])


if __name__ == "__main__":
    unittest.main()
