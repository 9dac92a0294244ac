"""`nibble quantize` stopped at any moment goes on with --resume to the same bytes (unittest: needs only Python)."""

import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time
import unittest

from tiny_model import file_bytes, varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]
SCRATCH = ".nibble"


class Resume(unittest.TestCase):
    METHOD_FLAGS = {"fp8": ["--format", "compressed-tensors"], "squeezellm": ["--guided"]}

    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        write_tiny_llama(cls.folder / "model", num_layers=3)
        (cls.folder / "text.txt").write_text(varied_text(3000))
        (cls.folder / "other.txt").write_text(varied_text(3000, seed=8))
        cls.undisturbed = {}
        cls.num_outputs = 0

    def new_output(self):
        type(self).num_outputs += 1
        return self.folder / f"output-{self.num_outputs}"

    def command(self, output, *flags, method="gptq", text="text.txt", model=None):
        defaults = [] if method in ("rtn", "fp8") else ["--calibration", self.folder / text, "--samples", "16", "--seq-len", "64"]
        kept = [word for i in range(0, len(defaults), 2) if defaults[i] not in flags for word in defaults[i:i + 2]]
        return [NIBBLE, "quantize", model or self.folder / "model", "--method", method, *self.METHOD_FLAGS.get(method, ["--group-size", "32"]), *kept,
                "--output", output, *flags]

    def run_command(self, *arguments, crash_at=0, **options):
        return subprocess.run(self.command(*arguments, **options), capture_output=True, timeout=60, text=True,
                              env={**os.environ, "NIBBLE_CRASH_AT": str(crash_at)})

    def expected(self, method):
        if method not in self.undisturbed:
            output = self.new_output()
            done = self.run_command(output, "--threads", "2", method=method)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.undisturbed[method] = file_bytes(output)
            self.assertIn("config.json", self.undisturbed[method])
        return self.undisturbed[method]

    @staticmethod
    def work_of(output):
        """All files but the lock, which says who held it last."""
        return {name: text for name, text in file_bytes(output).items() if name != f"{SCRATCH}/lock"}

    def expect_error(self, done, *parts):
        self.assertEqual(done.returncode, 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr.strip().rsplit("\n", 1)[-1])

    def test_a_kill_at_every_transition_resumes_to_the_same_bytes(self):
        # Every transition of one method, a part of them for the others, which share the journal's code.
        for method, step in [("gptq", 1), ("awq", 4), ("rtn", 3), ("fp8", 4), ("squeezellm", 5)]:
            for crash_at in range(1, 1000, step):
                output = self.new_output()
                crashed = self.run_command(output, "--threads", "1", crash_at=crash_at, method=method)
                if crashed.returncode == 0:
                    self.assertGreater(crash_at, 25, "the run has fewer transitions than it has steps")
                    break
                self.assertEqual(crashed.returncode, -signal.SIGKILL, crashed.stderr)
                if (output / "config.json").exists():  # it looks complete: then it is
                    left = {name: text for name, text in file_bytes(output).items() if not name.startswith(SCRATCH)}
                    self.assertEqual(left, self.expected(method))
                resumed = self.run_command(output, "--threads", "2", "--resume", method=method)
                self.assertEqual(resumed.returncode, 0, (crash_at, resumed.stderr))
                self.assertEqual(file_bytes(output), self.expected(method), crash_at)

    def test_a_resumed_backward_pass_needs_no_forward_pass(self):
        output = self.new_output()
        crashed = self.run_command(output, crash_at=20, method="squeezellm")
        self.assertIn("Forward pass", crashed.stderr)
        resumed = self.run_command(output, "--resume", method="squeezellm")
        self.assertNotIn("Forward pass", resumed.stderr)
        self.assertEqual(file_bytes(output), self.expected("squeezellm"))

    def test_a_run_that_dies_again_and_again_gets_there(self):
        output = self.new_output()
        for attempt in range(100):
            done = self.run_command(output, "--resume", crash_at=8 + attempt % 3)
            if done.returncode == 0:
                self.assertGreater(attempt, 2)
                break
            self.assertEqual(done.returncode, -signal.SIGKILL, done.stderr)
        self.assertEqual(file_bytes(output), self.expected("gptq"))

    def test_twenty_kills_at_random_moments(self):
        self.expected("gptq")
        start = time.monotonic()
        self.run_command(self.new_output())
        seconds = time.monotonic() - start
        generator = random.Random(5)
        output, kills = self.new_output(), 0
        while kills < 20:
            process = subprocess.Popen(self.command(output, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            time.sleep(generator.uniform(0.1, 1) * seconds)
            process.kill()
            message = process.communicate()[1]
            kills += process.returncode == -signal.SIGKILL
            if process.returncode != -signal.SIGKILL:
                self.assertEqual(process.returncode, 0, message)
            if (output / "config.json").exists() and not (output / SCRATCH).exists():
                self.assertEqual(file_bytes(output), self.expected("gptq"))
                output = self.new_output()
        done = self.run_command(output, "--resume")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(file_bytes(output), self.expected("gptq"))

    def test_a_torn_journal_line_does_not_count(self):
        output = self.new_output()
        self.run_command(output, crash_at=20)
        journal = output / SCRATCH / "journal.jsonl"
        journal.write_bytes(journal.read_bytes()[:-30])
        self.assertEqual(self.run_command(output, "--resume").returncode, 0)
        self.assertEqual(file_bytes(output), self.expected("gptq"))

    def test_another_configuration_calibration_or_model_is_refused_by_name(self):
        output = self.new_output()
        model = self.folder / "other-model"
        write_tiny_llama(model, num_layers=3)
        self.run_command(output, crash_at=20, model=model)
        before = self.work_of(output)
        for flags, part in [(["--bits", "3"], "method bits was 4, is 3"), (["--asym"], "method sym was true, is false"),
                            (["--seed", "1"], "calibration seed was 0, is 1"),
                            (["--samples", "15"], "calibration samples was 16, is 15")]:
            self.expect_error(self.run_command(output, "--resume", *flags, model=model), "--resume", part)
        self.expect_error(self.run_command(output, "--resume", model=model, text="other.txt"), "calibration text was")
        weights = model / "model.safetensors"
        content, status = bytearray(weights.read_bytes()), weights.stat()
        content[-1] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.expect_error(self.run_command(output, "--resume", model=model), "model model.safetensors sampled_sha256 was")
        self.assertEqual(self.work_of(output), before)

    def test_a_stopped_run_is_not_overwritten(self):
        output = self.new_output()
        self.run_command(output, crash_at=20)
        before = self.work_of(output)
        self.expect_error(self.run_command(output), "holds a run that was stopped; go on with --resume")
        self.assertEqual(self.work_of(output), before)
        finished = self.new_output()
        self.run_command(finished)
        for flags in [[], ["--resume"]]:
            self.expect_error(self.run_command(finished, *flags), "exists already")

    def test_the_second_of_two_runs_says_who_holds_the_folder(self):
        output = self.new_output()
        first = subprocess.Popen(self.command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (output / SCRATCH / "lock").exists() or not (output / SCRATCH / "lock").read_text():
            self.assertIsNone(first.poll())
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        for flags in [[], ["--resume"]]:
            self.expect_error(self.run_command(output, *flags), "another nibble is writing there", f"process {first.pid} on")
        first.send_signal(signal.SIGCONT)
        self.assertEqual(first.wait(timeout=60), 0)
        self.assertEqual(file_bytes(output), self.expected("gptq"))

    def test_a_lost_shard_is_named(self):
        output = self.new_output()
        self.run_command(output, crash_at=20)
        shard = output / SCRATCH / "shard-00001"
        size = shard.stat().st_size
        os.truncate(shard, 270_000)
        self.expect_error(self.run_command(output, "--resume"), "shard-00001", f"holds 270000 bytes")
        self.assertGreater(size, 270_000)
        shard.unlink()
        self.expect_error(self.run_command(output, "--resume"), "shard-00001: is missing")


if __name__ == "__main__":
    unittest.main()
