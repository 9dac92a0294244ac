"""The flags of `nibble quantize` in our spelling and in the guides' (unittest: needs nothing but Python)."""

import json
import os
import pathlib
import struct
import subprocess
import tempfile
import unittest

from tiny_model import varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]


def tensors_of(folder):
    """{name: (dtype, shape, bytes)} of model.safetensors."""
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    data = raw[8 + length:]
    return {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()}


class Quantize(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.model = self.folder / "model"
        write_tiny_llama(self.model)
        self.num_outputs = 0

    def quantize(self, *flags):
        """(exit code, quantization_config or None, last line of stderr)"""
        self.num_outputs += 1
        output = self.folder / f"output-{self.num_outputs}"
        done = subprocess.run([NIBBLE, "quantize", "--output", output, *flags], capture_output=True, timeout=60, text=True)
        config = output / "config.json"
        written = json.loads(config.read_text())["quantization_config"] if config.exists() else None
        return done.returncode, written, done.stderr.strip().rsplit("\n", 1)[-1]

    def test_both_spellings_mean_the_same(self):
        ours = self.quantize(self.model, "--method", "rtn", "--bits", "4", "--group-size", "32", "--asym")
        guides = self.quantize("--model", self.model, "--method", "rtn", "--w_bit", "4", "--q_group_size", "32",
                               "--zero_point")
        self.assertEqual((ours[0], guides[0]), (0, 0), (ours, guides))
        self.assertEqual(ours[1], guides[1])
        self.assertEqual((ours[1]["bits"], ours[1]["group_size"], ours[1]["sym"]), (4, 32, False))

    def test_guided_gptq_is_written_in_every_format_that_holds_it(self):
        (self.folder / "text.txt").write_text("the end loss says what matters; " * 60)
        common = [self.model, "--method", "gptq", "--group-size", "32", "--calibration", self.folder / "text.txt",
                  "--samples", "8", "--seq-len", "64"]
        for flags, method in [(["--guided", "--asym", "--format", "autoawq"], "awq"), (["--guided", "--sym"], "gptq"),
                              (["--quality", "best", "--asym"], "gptq"),
                              (["--guided", "--format", "compressed-tensors"], "compressed-tensors")]:
            code, config, message = self.quantize(*common, *flags)
            self.assertEqual(code, 0, (flags, message))
            self.assertEqual(config["quant_method"], method, flags)

    def test_guided_is_refused_where_it_has_no_meaning(self):
        for flags, part in [(["--method", "awq", "--guided"], "--method gptq --guided --asym"),
                            (["--method", "rtn", "--guided"], "not with rtn"),
                            (["--method", "fp8", "--guided"], "not with fp8"),
                            (["--method", "gptq", "--guided", "--desc-act"], "leave --desc-act out"),
                            (["--method", "squeezellm", "--guided", "--sensitivity", "hessian"], "leave one out")]:
            code, config, message = self.quantize(self.model, *flags)
            self.assertEqual((code, config), (1, None), flags)
            self.assertIn(part, message)

    def test_drift_is_corrected_by_default_where_it_was_measured_to_help(self):
        (self.folder / "text.txt").write_text(varied_text(40_000))
        common = [self.model, "--group-size", "32", "--calibration", self.folder / "text.txt", "--seq-len", "64"]
        for flags, expected in [(["--method", "gptq", "--samples", "512"], 0.5), (["--method", "gptq", "--samples", "511"], 0),
                                (["--method", "gptq", "--samples", "512", "--bits", "8"], 0),
                                (["--method", "gptq", "--samples", "512", "--bits", "3"], 0),
                                (["--method", "gptq", "--samples", "512", "--drift-correction", "0"], 0),
                                (["--method", "gptq", "--samples", "512", "--guided"], 0),
                                (["--method", "gptq", "--samples", "16", "--gptaq", "0.25"], 0.25),
                                (["--method", "gptq", "--samples", "16", "--quality", "best"], 0.5),
                                (["--method", "gptq", "--samples", "16", "--quality", "best", "--bits", "3"], 0),
                                (["--method", "awq", "--samples", "512", "--rounding", "gptq"], 0),
                                (["--method", "awq", "--samples", "16", "--drift-correction", "1"], 1)]:
            code, _, message = self.quantize(*common, *flags)
            self.assertEqual(code, 0, (flags, message))
            report = json.loads((self.folder / f"output-{self.num_outputs}" / "nibble_report.json").read_text())
            self.assertEqual(report["identity"]["method"]["drift_correction"], expected, flags)

    def test_switches_take_a_value_or_none(self):
        common = ["--method", "rtn", "--group-size", "32"]
        for flags, sym in [(["--zero_point", "True", self.model], False), (["--zero_point=false", self.model], True),
                           (["--zero_point", self.model], False), (["--desc_act", "false", self.model], True),
                           ([self.model], True)]:
            code, config, message = self.quantize(*common, *flags)
            self.assertEqual(code, 0, (flags, message))
            self.assertEqual(config["sym"], sym, flags)

    def test_what_contradicts_itself_is_an_error(self):
        code, config, message = self.quantize(self.model, "--method", "awq", "--group-size", "32", "--sym",
                                              "--zero_point", "true")
        self.assertEqual((code, config), (1, None))
        self.assertIn("--sym, --asym and --zero_point contradict one another", message)

    def test_flags_without_meaning_are_named_in_one_line(self):
        code, config, message = self.quantize(self.model, "--method", "fp8", "--w_bit", "4", "--group-size", "128",
                                              "--zero_point", "true")
        self.assertEqual((code, config["quant_method"], config["format"]), (0, "compressed-tensors", "float-quantized"))
        done = subprocess.run([NIBBLE, "quantize", self.model, "--output", self.folder / "again", "--method", "fp8",
                               "--w_bit", "4", "--group-size", "128"], capture_output=True, timeout=60, text=True)
        self.assertIn("ignored, because fp8 has no use for it: --bits, --group-size\n", done.stderr)
        code, config, _ = self.quantize(self.model, "--method", "rtn", "--group-size", "32", "--kv-cache-scales",
                                        "--weight-strategy", "block")
        self.assertEqual((code, config["quant_method"]), (0, "gptq"))

    def test_rounded_activations_are_refused_where_the_file_quantizes_weights_only(self):
        self.assertEqual(self.quantize(self.model, "--method", "fp8", "--format", "compressed-tensors")[0], 0)
        output = self.folder / "output-1"
        (self.folder / "text.txt").write_text("what is rounded and what is not; " * 20)
        command = [NIBBLE, "eval", output, "--tasks", "ppl", "--text", self.folder / "text.txt", "--activations"]
        config = json.loads((output / "config.json").read_text())
        for group in config["quantization_config"]["config_groups"].values():
            self.assertIsNotNone(group["input_activations"])
        self.assertEqual(subprocess.run([*command, "fp8"], capture_output=True, timeout=60).returncode, 0)
        for group in config["quantization_config"]["config_groups"].values():
            group["input_activations"] = None
        (output / "config.json").write_text(json.dumps(config))
        done = subprocess.run([*command, "fp8"], capture_output=True, timeout=60, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("quantizes weights only (no input_activations", done.stderr)
        self.assertEqual(subprocess.run([*command, "auto"], capture_output=True, timeout=60).returncode, 0)

    def test_fp8_blocks_take_no_static_activations(self):
        code, _, message = self.quantize(self.model, "--method", "fp8", "--weight-strategy", "block",
                                         "--activation-scheme", "static")
        self.assertEqual(code, 1)
        self.assertIn("--activation-scheme static does not go with blocks", message)

    def test_the_model_is_named_once(self):
        for flags in [[], [self.model, "--model", self.model]]:
            code, _, message = self.quantize("--method", "rtn", *flags)
            self.assertEqual(code, 2, flags)
            self.assertIn("give the model once", message)

    def test_a_group_size_that_does_not_fit_says_which_do(self):
        code, _, message = self.quantize(self.model, "--method", "rtn")
        self.assertEqual(code, 1)
        self.assertIn("group size 128 does not divide in_features 64 of model.layers.0.self_attn.q_proj", message)
        self.assertIn("choose --group-size 32, 16, -1", message)

    def test_the_format_is_the_methods_own_unless_it_is_named(self):
        common = [self.model, "--group-size", "32"]
        for flags, method, layout in [(["--method", "rtn"], "gptq", "gptq"), (["--method", "rtn", "--asym"], "gptq", "gptq_v2"),
                                      (["--method", "rtn", "--format", "autoawq"], "awq", None),
                                      (["--method", "rtn", "--format", "gptq_v2"], "gptq", "gptq_v2"),
                                      (["--method", "rtn", "--format", "compressed-tensors"], "compressed-tensors", None)]:
            code, config, message = self.quantize(*common, *flags)
            self.assertEqual(code, 0, (flags, message))
            self.assertEqual((config["quant_method"], config.get("checkpoint_format")), (method, layout), flags)
        for flags, part in [(["--format", "fp8"], "--format fp8 cannot hold what rtn makes; choose gptq"),
                            (["--format", "gptq", "--asym"], "choose gptq_v2 or --sym"),
                            (["--format", "autoawq", "--bits", "3"], "holds 4 bits only"),
                            (["--format", "marlin"], "unknown format 'marlin'")]:
            code, config, message = self.quantize(*common, "--method", "rtn", *flags)
            self.assertEqual((code, config), (1, None), flags)
            self.assertIn(part, message)

    def test_convert_goes_there_and_back(self):
        self.quantize(self.model, "--method", "rtn", "--group-size", "32")
        first, there, back = self.folder / "output-1", self.folder / "there", self.folder / "back"
        for source, layout, output in [(first, "compressed-tensors", there), (there, "gptq", back)]:
            done = subprocess.run([NIBBLE, "convert", source, "--format", layout, "--output", output],
                                  capture_output=True, timeout=60, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("7 linears", done.stdout)
        self.assertEqual(tensors_of(first), tensors_of(back))
        done = subprocess.run([NIBBLE, "convert", first, "--format", "fp8", "--output", self.folder / "none"],
                              capture_output=True, timeout=60, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("int4 g32 sym cannot be written as 'fp8'", done.stderr)
        self.assertFalse((self.folder / "none" / "config.json").exists())

    def test_squeezellm_takes_its_own_flags_and_names_the_others(self):
        text = self.folder / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
        common = [self.model, "--method", "squeezellm", "--calibration", text, "--samples", "2", "--seq-len", "32"]
        for flags, bits, sparsity in [([], 4, 0.0045), (["--bits", "3", "--sparsity", "0"], 3, 0),
                                      (["--sparsity", "1.5%", "--sensitivity", "hessian"], 4, 0.015)]:
            code, config, message = self.quantize(*common, *flags)
            self.assertEqual(code, 0, (flags, message))
            self.assertEqual((config["quant_method"], config["wbits"], config["bits"]), ("squeezellm", bits, bits))
            self.assertEqual((config["include_sparse"], config["sparsity"]), (sparsity > 0, sparsity))
            output = self.folder / f"output-{self.num_outputs}"
            self.assertEqual(json.loads((output / "quant_config.json").read_text()), {"wbits": bits})
            names = set(tensors_of(output))
            self.assertEqual("model.layers.0.mlp.down_proj.rows" in names, sparsity > 0)
            done = subprocess.run([NIBBLE, "generate", output, "--prompt", "ab", "--max-tokens", "4"],
                                  capture_output=True, timeout=60, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
        done = subprocess.run([NIBBLE, "quantize", *common, "--output", self.folder / "ignored", "--sensitivity",
                               "hessian", "--group-size", "128", "--kv-cache-scales"],
                              capture_output=True, timeout=60, text=True)
        self.assertIn("ignored, because squeezellm has no use for it: --group-size, --kv-cache-scales\n", done.stderr)
        for flags, code, part in [(["--bits", "2"], 1, "--bits 2: SqueezeLLM has 3 and 4"),
                                  (["--sparsity", "0.45"], 2, "'0.45' is no percentage; write it as in 0.45%"),
                                  (["--sparsity", "-1%"], 1, "--sparsity -1%: choose 0"),
                                  (["--sparsity", "60%"], 1, "--sparsity 60%: choose 0"),
                                  (["--sparsity", "nan%"], 1, "--sparsity nan%: choose 0"),
                                  (["--sparsity", "some"], 2, "is no percentage"),
                                  (["--sensitivity", "guess"], 2, "--sensitivity"),
                                  (["--format", "gptq"], 1, "--format gptq cannot hold what squeezellm makes")]:
            found, config, message = self.quantize(*common, *flags)
            self.assertEqual((found, config), (code, None), (flags, message))
            self.assertIn(part, message)

    def test_an_unknown_method_lists_the_known_ones(self):
        code, _, message = self.quantize(self.model, "--method", "squeeze")
        self.assertEqual(code, 1)
        self.assertIn("unknown method squeeze; nibble knows rtn, awq, gptq", message)


if __name__ == "__main__":
    unittest.main()
