"""Calibration sets of every kind (robustness.md 67): each works or is one clear error, none hangs (unittest only)."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

from tiny_model import file_bytes, varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]


class Calibration(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        cls.num_outputs = 0
        write_tiny_llama(cls.folder / "model")

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def quantize(self, *files, flags=(), model="model", method="gptq"):
        type(self).num_outputs += 1
        output = self.folder / f"output-{self.num_outputs}"
        sources = [word for file in files for word in ("--calibration", file)]
        sizes = [word for name, value in (("--samples", "16"), ("--seq-len", "32")) if name not in flags
                 for word in (name, value)]
        done = subprocess.run([NIBBLE, "quantize", self.folder / model, "--method", method, "--group-size", "32",
                               *sources, *sizes, "--output", output, *flags], capture_output=True, timeout=60, text=True)
        return done, output

    def check_works(self, *files, **options):
        done, output = self.quantize(*files, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stderr, output

    def check_refused(self, *files, part, **options):
        done, output = self.quantize(*files, **options)
        self.assertEqual(done.returncode, 1, done.stderr)
        message = done.stderr.strip().rsplit("\n", 1)[-1]
        self.assertTrue(message.startswith("nibble: error: "), message)
        self.assertIn(part, message)
        self.assertFalse(output.exists())

    def test_text_json_lines_and_conversations_together(self):
        text = self.write("a.txt", varied_text(200))
        lines = self.write("b.jsonl", json.dumps({"text": varied_text(100, 1)}) + "\n\n" + json.dumps(
            {"messages": [{"role": "user", "content": varied_text(100, 2)}, {"role": "assistant", "content": "yes"}]}))
        log, both = self.check_works(text, lines)
        self.assertIn("a.txt, ", log)
        _, other_order = self.check_works(lines, text)
        self.assertNotEqual(file_bytes(both), file_bytes(other_order))

    def test_seeds_draw_other_samples(self):
        text = self.write("long.txt", varied_text(5000))
        outputs = [file_bytes(self.check_works(text, flags=["--seed", seed])[1])["model.safetensors"]
                   for seed in ("0", "0", "1")]
        self.assertEqual(outputs[0], outputs[1])
        self.assertNotEqual(outputs[0], outputs[2])

    def test_too_little_text_is_refused_and_little_text_is_warned_of(self):
        self.check_refused(self.write("empty.txt", ""), part="0 tokens are less than one sample of 32")
        self.check_refused(self.write("one.txt", "a"), part="1 tokens are less than one sample of 32")
        log, _ = self.check_works(self.write("few.txt", varied_text(40)))
        self.assertIn("40 tokens give 1 samples of 32, not the 16 asked for", log)
        self.assertIn("32 calibration tokens are few for linears of 96 inputs", log)

    def test_monotonous_text_works_and_is_warned_of(self):
        log, _ = self.check_works(self.write("same.txt", "a" * 1000))
        self.assertIn("only 1 different tokens of a vocabulary of 256", log)

    def quantize_measured(self, path):
        """(standard error, bytes resident at the peak) of a run that works."""
        type(self).num_outputs += 1
        command = [NIBBLE, "quantize", self.folder / "model", "--method", "fp8", "--activation-scheme", "static",
                   "--calibration", path, "--samples", "16", "--seq-len", "32", "--output",
                   self.folder / f"output-{self.num_outputs}"]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with running.stderr:
            error = running.stderr.read()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(running.returncode, 0, error)
        return error, usage.ru_maxrss << 10

    def test_ten_gigabytes_are_read_in_part(self):
        path = self.folder / "huge.txt"
        with open(path, "wb") as file:
            file.truncate(10 << 30)  # holes between the lines
            for position in range(0, 10 << 30, 64 << 20):
                file.seek(position)
                file.write(varied_text(1000).encode())
        error, resident = self.quantize_measured(path)
        self.assertRegex(error, r"huge.txt: reading \d+ excerpts drawn from all over the text")
        self.assertLess(resident, 1 << 30)

    def test_many_json_lines_are_read_in_part(self):
        lines = "".join(json.dumps({"text": varied_text(500 * i, i)}) + "\n" for i in range(100))
        path = self.write("large.jsonl", lines * (100_000_000 // len(lines)))
        error, resident = self.quantize_measured(path)
        self.assertRegex(error, r"large.jsonl: reading \d+ excerpts")
        self.assertNotIn("different tokens", error)
        self.assertLess(resident, 1 << 30)
        path.write_text(path.read_text().replace('"text"', '"texts"'))
        self.check_refused(path, part="large.jsonl line 1 behind byte ")

    def test_bytes_that_are_no_utf8_work_or_are_named(self):
        done, output = self.quantize(self.write("bytes.txt", bytes(range(256)) * 10))
        if done.returncode != 0:
            self.assertIn("bytes.txt", done.stderr)
            self.assertFalse(output.exists())

    def test_files_that_are_none_are_named(self):
        self.check_refused(self.folder / "absent.txt", part="absent.txt")
        self.check_refused(self.folder, part="not a regular file")
        self.check_refused(self.write("bad.jsonl", '{"text": "fine"}\n{"text": \n'), part="bad.jsonl line 2")
        self.check_refused("self", self.write("x.txt", varied_text(100)), part="self does not go together with files")

    def test_samples_longer_than_the_context_are_refused(self):
        self.check_refused(self.write("y.txt", varied_text(1000)), flags=["--seq-len", "129"], part="context of 128")

    def test_samples_beyond_counting_are_refused(self):
        for samples in [2 * 10**9, 2**57, 2**63 - 1]:
            self.check_refused(self.write("many.txt", varied_text(1000)), flags=["--samples", str(samples), "--seq-len", "64"],
                               part=f"--samples {samples} of --seq-len 64 tokens are too many")

    def test_dead_layers_and_channels_are_quantized(self):
        """A norm of zeros: every input of its stage is zero, so that the Hessian is singular and no channel is reached."""
        write_tiny_llama(self.folder / "dead", zero=["model.layers.0.post_attention_layernorm"])
        text = self.write("z.txt", varied_text(1000))
        for method in ["gptq", "awq"]:
            log, _ = self.check_works(text, model="dead", method=method)
            self.assertIn("hardly reaches", log)

    def test_linears_of_zeros_are_quantized_and_verified(self):
        write_tiny_llama(self.folder / "pruned", zero=["model.layers.0.mlp.up_proj"])
        text = self.write("w.txt", varied_text(1000))
        for method, flags in [("rtn", []), ("gptq", []), ("gptq", ["--asym", "--desc_act"]), ("gptq", ["--guided"]),
                              ("awq", []), ("awq", ["--rounding", "gptq"]), ("squeezellm", []),
                              ("squeezellm", ["--guided"]), ("fp8", ["--activation-scheme", "static"])]:
            _, output = self.check_works(text, model="pruned", method=method, flags=flags)
            done = subprocess.run([NIBBLE, "verify", output], capture_output=True, timeout=60, text=True)
            self.assertEqual(done.returncode, 0, (method, flags, done.stdout))


if __name__ == "__main__":
    unittest.main()
