"""`nibble inspect` (unittest: needs nothing but Python)."""

import json
import pathlib
import subprocess
import tempfile
import unittest

from quantize_test import NIBBLE, write_tiny_llama


class Inspect(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.model = self.folder / "model"
        write_tiny_llama(self.model)

    def inspect(self, *arguments):
        done = subprocess.run([NIBBLE, "inspect", *arguments], capture_output=True, timeout=60, text=True)
        return done.returncode, done.stdout, done.stderr

    def quantize(self, *flags):
        output = self.folder / "-".join(flags).replace("/", "_")
        subprocess.run([NIBBLE, "quantize", self.model, "--output", output, *flags], check=True, capture_output=True)
        return output

    def test_says_what_a_float_model_is(self):
        code, text, _ = self.inspect(self.model)
        self.assertEqual(code, 0)
        for part in ["LlamaForCausalLM", "safetensors, 11 tensors", "quantization  none", "F16", "7 linears",
                     "model.layers.*.mlp.down_proj.weight", "[64, 96]"]:
            self.assertIn(part, text)

    def test_tells_bits_groups_and_sizes_of_each_format(self):
        for flags, method, form in [
                (["--method", "rtn", "--group-size", "32"], "gptq", "int4 g32 sym"),
                (["--method", "rtn", "--group-size", "32", "--bits", "3", "--asym"], "gptq", "int3 g32 asym"),
                (["--method", "rtn", "--group-size", "32", "--format", "autoawq", "--asym"], "awq", "int4 g32 asym"),
                (["--method", "rtn", "--group-size", "-1", "--bits", "8", "--format", "compressed-tensors"],
                 "compressed-tensors", "int8 per channel sym"),
                (["--method", "fp8"], "compressed-tensors", "fp8 per channel"),
                (["--method", "fp8", "--weight-strategy", "tensor"], "fp8", "fp8 per tensor")]:
            code, text, error = self.inspect(self.quantize(*flags), "--json")
            self.assertEqual(code, 0, error)
            found = json.loads(text)
            self.assertEqual((found["method"], found["linears"][0]["form"]), (method, form))
            self.assertEqual(found["linears"][0]["linears"], 7)
            self.assertEqual(found["linears"][0]["weights"], 4 * 64 * 64 + 3 * 64 * 96)
            self.assertEqual(found["bytes"], sum(tensor["bytes"] for tensor in found["tensors"]))
            self.assertEqual(found["quantization"]["quant_method"], method)

    def test_tells_from_config_json_alone_what_the_files_would_hold(self):
        for flags in [["--method", "rtn", "--group-size", "32"],
                      ["--method", "rtn", "--group-size", "32", "--bits", "3", "--asym"],
                      ["--method", "rtn", "--group-size", "32", "--format", "autoawq", "--asym"]]:
            written = self.quantize(*flags)
            alone = pathlib.Path(str(written) + "-alone")
            alone.mkdir()
            (alone / "config.json").write_bytes((written / "config.json").read_bytes())
            code, text, error = self.inspect(alone, "--json")
            self.assertEqual(code, 0, error)
            guessed, real = json.loads(text), json.loads(self.inspect(written, "--json")[1])
            self.assertEqual(guessed["container"], "config.json alone")
            for key in ["architecture", "method", "weights", "quantization"]:
                self.assertEqual(guessed[key], real[key], (flags, key))
            self.assertEqual(guessed["linears"][0], real["linears"][0], flags)

    def test_lists_every_tensor_where_asked(self):
        self.assertIn("model.layers.0.self_attn.q_proj.weight", self.inspect(self.model, "--tensors")[1])

    def test_what_is_no_model_is_an_error(self):
        code, text, error = self.inspect(self.folder)
        self.assertEqual((code, text), (1, ""))
        self.assertIn("no config.json", error)


if __name__ == "__main__":
    unittest.main()
