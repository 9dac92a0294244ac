"""`--device cuda` on machines that lack something (unittest: needs nothing but Python)."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

NIBBLE = pathlib.Path(os.environ["NIBBLE_BIN"])
PLUGIN = NIBBLE.parent / "libnibble_cuda.so"

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
          "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 256,
          "rms_norm_eps": 1e-5, "max_position_embeddings": 128}


def has_gpu():
    return pathlib.Path("/dev/nvidia0").exists()


class Cuda(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        (self.folder / "model").mkdir()
        (self.folder / "model" / "config.json").write_text(json.dumps(CONFIG))

    def generate(self, program, device):
        return subprocess.run([program, "generate", self.folder / "model", "--load-format", "dummy", "--prompt", "x",
                               "--max-tokens", "1", "--device", device], capture_output=True, timeout=60, text=True)

    def check_refusal(self, done, *parts):
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        for part in ["nibble: error: ", "use --device cpu", *parts]:
            self.assertIn(part, done.stderr)

    def test_nibble_itself_needs_no_cuda_library(self):
        libraries = subprocess.run(["ldd", NIBBLE], capture_output=True, check=True, text=True).stdout
        for name in ["cuda", "cublas", "nccl", "nvidia", "cudnn"]:
            self.assertNotIn(name, libraries.replace(str(NIBBLE.parent), ""))

    def test_a_missing_plugin_is_named_with_where_it_was_looked_for(self):
        alone = self.folder / "bin"
        alone.mkdir()
        shutil.copy(NIBBLE, alone / "nibble")
        self.check_refusal(self.generate(alone / "nibble", "cuda"), "libnibble_cuda.so is not beside nibble in",
                           str(alone))

    def test_a_broken_plugin_is_named(self):
        folder = self.folder / "bin"
        folder.mkdir()
        shutil.copy(NIBBLE, folder / "nibble")
        (folder / "libnibble_cuda.so").write_text("no library")
        done = self.generate(folder / "nibble", "cuda")
        self.assertEqual(done.returncode, 1)
        self.assertIn("libnibble_cuda.so", done.stderr)

    @unittest.skipUnless(PLUGIN.exists(), "built without CUDA")
    @unittest.skipIf(has_gpu(), "this machine has a GPU")
    def test_a_machine_without_a_gpu_says_what_is_missing(self):
        done = self.generate(NIBBLE, "cuda")
        self.check_refusal(done, "libnibble_cuda.so")
        self.assertRegex(done.stderr, "no NVIDIA driver|NVIDIA driver goes up to|shows no NVIDIA GPU")

    def test_a_device_that_is_none_lists_those_there_are(self):
        done = self.generate(NIBBLE, "tpu")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("cuda", done.stderr)


if __name__ == "__main__":
    unittest.main()
