"""nibble bench: what it reports, on a tiny model (unittest: needs nothing but Python and the binary)."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import tiny_model

NIBBLE = os.environ["NIBBLE_BIN"]
DEVICE = os.environ.get("NIBBLE_TEST_DEVICE", "cpu")


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        tiny_model.write_tiny_llama(cls.folder / "model")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def bench(self, *flags):
        return subprocess.run([NIBBLE, "bench", self.folder / "model", "--device", DEVICE, "--iterations", "1",
                               "--num-iters-warmup", "0", *flags],
                              capture_output=True, timeout=60)

    def test_every_batch_size_and_prompt_length_is_a_row(self):
        output = self.folder / "bench.json"
        done = self.bench("--batch-size", "1,3", "--input-len", "16", "40", "--output-len", "24", "--json", output)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads(output.read_text())["rows"]
        self.assertEqual([(row["input_len"], row["batch_size"]) for row in rows], [(16, 1), (16, 3), (40, 1), (40, 3)])
        for row in rows:
            self.assertAlmostEqual(row["decode_tokens_per_s"] * row["decode_step_seconds"], row["batch_size"])
            decoding = row["decode_step_seconds"] * (row["output_len"] - 1)
            prefill = row["batch_size"] * row["input_len"] / row["prefill_tokens_per_s"]
            self.assertGreater(prefill, 0)
            if row["batch_size"] == 1:
                self.assertAlmostEqual(prefill + decoding, row["latency_seconds"], delta=1e-6)
            self.assertEqual(row["num_preemptions"], 0)
        self.assertEqual(done.stdout.decode().count("\nprefill "), 4)
        self.assertEqual(done.stdout.decode().count("\ndecode "), 4)

    def test_shapes_are_measured_as_given(self):
        output = self.folder / "shapes.json"
        done = self.bench("--shape", "2x16x4,1x100x1", "--shape", "1x8x8", "--json", output)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads(output.read_text())["rows"]
        self.assertEqual([(row["batch_size"], row["input_len"], row["output_len"]) for row in rows],
                         [(2, 16, 4), (1, 100, 1), (1, 8, 8)])
        for shape in ["2x16", "0x1x1", "1x1x1x", "1x-2x3", "axbxc"]:
            done = self.bench("--shape", shape)
            self.assertEqual(done.returncode, 1)
            self.assertIn(f"--shape {shape}: is no BATCHxINPUTxOUTPUT".encode(), done.stderr)

    def test_one_token_is_prefill_alone(self):
        done = self.bench("--output-len", "1", "--input-len", "8")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn(b"\ndecode ", done.stdout)

    def test_what_the_context_does_not_hold_is_refused(self):
        done = self.bench("--input-len", "100,120", "--output-len", "20")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"--input-len 120 and --output-len 20: together beyond the context of 128 tokens", done.stderr)


if __name__ == "__main__":
    unittest.main()
