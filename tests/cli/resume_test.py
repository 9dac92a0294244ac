"""`nibble quantize` stopped at any moment goes on with --resume to the same bytes (unittest: needs only Python)."""

import concurrent.futures
import itertools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from tiny_model import file_bytes, varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]
SCRATCH = ".nibble"


# Every way through the pipeline and its journal.
FAMILIES = {
    "gptq": ["--method", "gptq", "--group-size", "32"],
    "gptq of own text": ["--method", "gptq", "--group-size", "32", "--calibration", "self", "--samples", "4",
                         "--seq-len", "16"],
    "gptq drift corrected": ["--method", "gptq", "--drift-correction", "0.5", "--group-size", "32"],
    "gptq guided": ["--method", "gptq", "--guided", "--group-size", "32"],
    "gptq best": ["--method", "gptq", "--quality", "best", "--asym", "--bits", "3", "--group-size", "32"],
    "awq": ["--method", "awq", "--group-size", "32"],
    "awq rounding gptq": ["--method", "awq", "--rounding", "gptq", "--group-size", "32"],
    "awq best": ["--method", "awq", "--quality", "best", "--bits", "3", "--format", "compressed-tensors",
                 "--group-size", "32"],
    "rtn": ["--method", "rtn", "--group-size", "32"],
    "fp8 dynamic": ["--method", "fp8", "--format", "compressed-tensors"],
    "fp8 static": ["--method", "fp8", "--activation-scheme", "static", "--kv-cache-scales"],
    "squeezellm": ["--method", "squeezellm"],
    "squeezellm guided": ["--method", "squeezellm", "--guided"],
}
UNCALIBRATED = ("rtn", "fp8 dynamic")


class Resume(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # In memory, where states cost next to nothing: one is saved behind every block and replaces the one before.
        memory = pathlib.Path("/dev/shm")
        cls.in_memory = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 50e6
        temporary = tempfile.TemporaryDirectory(dir=memory if cls.in_memory else None)
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        write_tiny_llama(cls.folder / "model", num_layers=3)
        (cls.folder / "text.txt").write_text(varied_text(3000))
        (cls.folder / "other.txt").write_text(varied_text(3000, seed=8))
        cls.undisturbed = {}
        cls.output_numbers = itertools.count()
        cls.workers = concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
        cls.addClassCleanup(cls.workers.shutdown)

    def new_output(self):
        return self.folder / f"output-{next(self.output_numbers)}"

    def command(self, output, *flags, method="gptq", text="text.txt", model=None):
        defaults = ["--calibration", self.folder / text, "--samples", "16", "--seq-len", "64"]
        if method in UNCALIBRATED:
            defaults = []
        given = [*FAMILIES[method], *flags]
        kept = [word for i in range(0, len(defaults), 2) if defaults[i] not in given for word in defaults[i:i + 2]]
        return [NIBBLE, "quantize", model or self.folder / "model", *given, *kept, "--output", output]

    def run_command(self, *arguments, crash_at=0, **options):
        return subprocess.run(self.command(*arguments, **options), capture_output=True, timeout=60, text=True,
                              env={**os.environ, "NIBBLE_CRASH_AT": str(crash_at)})

    def undisturbed_run(self, method, num_threads="2"):
        output = self.new_output()
        done = self.run_command(output, "--threads", num_threads, method=method)
        self.assertEqual(done.returncode, 0, done.stderr)
        content = file_bytes(output)
        self.assertIn("config.json", content)
        shutil.rmtree(output)
        return content

    def expected(self, method):
        if method not in self.undisturbed:
            self.undisturbed[method] = self.undisturbed_run(method)
        return self.undisturbed[method]

    @staticmethod
    def work_of(output):
        """All files but the lock, which says who held it last."""
        return {name: text for name, text in file_bytes(output).items() if name != f"{SCRATCH}/lock"}

    def expect_error(self, done, *parts):
        self.assertEqual(done.returncode, 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr.strip().rsplit("\n", 1)[-1])

    def expect_same(self, output, method, *note):
        content, expected = file_bytes(output), self.expected(method)
        names = [name for name in sorted({*content, *expected}) if content.get(name) != expected.get(name)]
        self.assertEqual(names, [], (method, *note))

    def check_crashed(self, output, done, method):
        """Killed, and complete if it looks complete. Whether it replaced a saved state."""
        self.assertEqual(done.returncode, -signal.SIGKILL, done.stderr)
        if (output / "config.json").exists():
            left = {name: text for name, text in file_bytes(output).items() if not name.startswith(SCRATCH)}
            self.assertEqual(left, self.expected(method))
        journal = output / SCRATCH / "journal.jsonl"
        return journal.exists() and b'"dropped_states":["' in journal.read_bytes()

    def check_resumed(self, output, method, *note):
        resumed = self.run_command(output, "--threads", "2", "--resume", method=method)
        self.assertEqual(resumed.returncode, 0, (*note, resumed.stderr))
        self.expect_same(output, method, *note)
        shutil.rmtree(output)

    def kill_everywhere(self, method):
        """Kills a run at its first, second, … transition until one is left alone. (transitions, replaced states)"""
        num_replaced = 0
        for crash_at in range(1, 1000):
            output = self.new_output()
            crashed = self.run_command(output, "--threads", "1", crash_at=crash_at, method=method)
            if crashed.returncode == 0:
                self.expect_same(output, method)
                shutil.rmtree(output)
                return crash_at - 1, num_replaced
            num_replaced += self.check_crashed(output, crashed, method)
            self.check_resumed(output, method, crash_at)
        self.fail(f"{method}: more transitions than can be")

    def test_one_and_two_threads_write_the_same_bytes(self):
        for method, content in zip(FAMILIES, self.workers.map(lambda name: self.undisturbed_run(name, "1"), FAMILIES)):
            self.assertTrue(content == self.expected(method), method)

    def test_a_kill_at_every_transition_resumes_to_the_same_bytes(self):
        for method in FAMILIES:
            self.expected(method)
        for method, (num_transitions, num_replaced) in zip(FAMILIES, self.workers.map(self.kill_everywhere, FAMILIES)):
            self.assertGreater(num_transitions, 25, f"{method}: fewer transitions than it has steps")
            if self.in_memory and method not in UNCALIBRATED:
                self.assertGreater(num_replaced, 0, f"{method}: no kill behind a state that was replaced")

    def test_a_kill_while_resuming_resumes_to_the_same_bytes(self):
        """Behind every transition of the first run one in three of the second, by turns another third."""
        def kill_twice(first):
            begun = self.new_output()
            done = self.run_command(begun, "--threads", "2", crash_at=first)
            if done.returncode == 0:
                return 0
            for second in range(1 + first % 3, 1000, 3):
                output = self.new_output()
                shutil.copytree(begun, output)
                crashed = self.run_command(output, "--threads", "1", "--resume", crash_at=second)
                if crashed.returncode == 0:
                    self.expect_same(output, "gptq", first, second)
                    return second // 3
                self.check_crashed(output, crashed, "gptq")
                self.check_resumed(output, "gptq", first, second)
            return self.fail("more transitions than can be")

        self.expected("gptq")
        self.assertGreater(sum(self.workers.map(kill_twice, range(1, 40))), 100)

    def test_a_kill_while_statistics_are_kept_or_taken_resumes_to_the_same_bytes(self):
        method = "squeezellm guided"
        kept = self.folder / "kept"

        def kill(crash_at, statistics):
            output = self.new_output()
            flags = ["--statistics", statistics or self.folder / f"kept-{crash_at}"]
            crashed = self.run_command(output, *flags, "--threads", "1", crash_at=crash_at, method=method)
            if crashed.returncode != 0:
                self.check_crashed(output, crashed, method)
                resumed = self.run_command(output, *flags, "--threads", "2", "--resume", method=method)
                self.assertEqual(resumed.returncode, 0, (crash_at, resumed.stderr))
            self.expect_same(output, method, crash_at)
            shutil.rmtree(output)
            return crashed.returncode != 0

        self.expected(method)
        self.assertGreater(sum(self.workers.map(lambda n: kill(n, None), range(1, 60))), 30)
        self.assertFalse(kill(0, kept))
        self.assertGreater(sum(self.workers.map(lambda n: kill(n, kept), range(1, 60, 2))), 12)

    def test_a_resumed_backward_pass_needs_no_forward_pass(self):
        output = self.new_output()
        crashed = self.run_command(output, crash_at=20, method="squeezellm guided")
        self.assertIn("Forward pass", crashed.stderr)
        resumed = self.run_command(output, "--resume", method="squeezellm guided")
        self.assertNotIn("Forward pass", resumed.stderr)
        self.expect_same(output, "squeezellm guided")

    def test_a_run_that_dies_again_and_again_gets_there(self):
        output = self.new_output()
        for attempt in range(100):
            done = self.run_command(output, "--resume", crash_at=8 + attempt % 3)
            if done.returncode == 0:
                self.assertGreater(attempt, 2)
                break
            self.assertEqual(done.returncode, -signal.SIGKILL, done.stderr)
        self.expect_same(output, "gptq")

    def test_kills_at_random_moments_resume_to_the_same_bytes(self):
        """Two of each family, so more than twenty; a run that ends before its second is followed by another."""
        def kill_at_random(method):
            self.expected(method)
            generator = random.Random(method)
            start = time.monotonic()
            self.undisturbed_run(method)
            seconds = time.monotonic() - start
            output, kills = self.new_output(), 0
            while kills < 2:
                process = subprocess.Popen(self.command(output, "--resume", method=method), stdout=subprocess.DEVNULL,
                                           stderr=subprocess.PIPE)
                time.sleep(generator.uniform(0.05, 0.95) * seconds)
                process.kill()
                message = process.communicate()[1]
                kills += process.returncode == -signal.SIGKILL
                if process.returncode != -signal.SIGKILL:
                    self.assertEqual(process.returncode, 0, message)
                if (output / "config.json").exists() and not (output / SCRATCH).exists():
                    self.expect_same(output, method)
                    output = self.new_output()
            self.check_resumed(output, method, "random")
            return kills

        self.assertGreaterEqual(sum(self.workers.map(kill_at_random, FAMILIES)), 20)

    def test_a_torn_journal_line_does_not_count(self):
        output = self.new_output()
        self.run_command(output, crash_at=20)
        journal = output / SCRATCH / "journal.jsonl"
        journal.write_bytes(journal.read_bytes()[:-30])
        done = self.run_command(output, "--resume")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.expect_same(output, "gptq")

    def test_a_lost_state_costs_time_only(self):
        for method in ["gptq", "squeezellm guided"]:
            output = self.new_output()
            self.run_command(output, crash_at=22, method=method)
            states = list((output / SCRATCH).glob("state-stream-*"))
            self.assertGreater(len(states), 0)
            for state in states:
                state.unlink()
            done = self.run_command(output, "--resume", method=method)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.expect_same(output, method)

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
        self.expect_same(output, "gptq")

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
