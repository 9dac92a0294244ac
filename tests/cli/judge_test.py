"""`nibble quantize --judge` reports what `nibble eval` measures of the same files (unittest: needs only Python)."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree

from tiny_model import file_bytes, varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]
# Two walks over the same bytes with the same arithmetic: what differs is the rounding of decimals on the way through
# JSON. A judgment of anything else than the written file would miss by far more.
TOLERANCE = 1e-3


class Judge(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(dir="/dev/shm")
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        write_tiny_llama(cls.folder / "model", num_layers=2)
        (cls.folder / "text.txt").write_text(varied_text(4000))
        (cls.folder / "other.txt").write_text(varied_text(1500, seed=8))
        cls.num_outputs = 0

    def new_output(self):
        type(self).num_outputs += 1
        return self.folder / f"output-{self.num_outputs}"

    def quantize(self, output, *flags, method="gptq", text="text.txt", samples=16, crash_at=0):
        sources = ["--calibration", self.folder / text] if text else []
        calibration = [*sources, "--samples", str(samples), "--seq-len", "64"]
        return subprocess.run(
            [NIBBLE, "quantize", self.folder / "model", "--method", method, "--output", output,
             *([] if method in ("rtn", "fp8") else calibration),
             *([] if method in ("fp8", "squeezellm") else ["--group-size", "32"]), *flags],
            capture_output=True, timeout=60, text=True, env={**os.environ, "NIBBLE_CRASH_AT": str(crash_at)})

    def judged(self, *flags, exit_code=0, **options):
        output = self.new_output()
        done = self.quantize(output, *flags, **options)
        self.assertEqual(done.returncode, exit_code, done.stderr)
        self.assertFalse((output / ".nibble").exists())
        return done, output, json.loads((output / "nibble_report.json").read_text())["judged"]

    def evaluated(self, output, *flags):
        """The metrics of the float model and of the quantized one."""
        file = self.folder / "eval.json"
        subprocess.run([NIBBLE, "eval", output, "--baseline", self.folder / "model", "--tasks", "ppl,kl", "--exact",
                        "--json", file, *flags], check=True, capture_output=True, timeout=60)
        return [model["metrics"] for model in json.loads(file.read_text())["models"]]

    def check_agrees(self, judged, metrics):
        baseline, model = metrics
        self.assertAlmostEqual(judged["kl"], model["kl"]["value"], delta=TOLERANCE)
        self.assertAlmostEqual(judged["kl_standard_error"], model["kl"]["standard_error"], delta=TOLERANCE)
        self.assertAlmostEqual(judged["top1"], model["top1"]["value"], delta=TOLERANCE)
        self.assertAlmostEqual(judged["ppl"], model["ppl"]["value"], delta=TOLERANCE * judged["ppl"])
        self.assertAlmostEqual(judged["float_ppl"], baseline["ppl"]["value"], delta=TOLERANCE * judged["ppl"])
        self.assertGreater(judged["kl"], 10 * TOLERANCE)  # else any number would agree

    def test_every_method_agrees_with_eval(self):
        for method, *flags in [("gptq", "--bits", "3"), ("gptq", "--desc_act", "--bits", "3"), ("awq", "--bits", "3"),
                               ("gptq", "--guided", "--bits", "2"), ("squeezellm", "--bits", "3"),
                               ("rtn", "--bits", "3"), ("fp8", "--weight-strategy", "tensor")]:
            _, output, judged = self.judged("--judge-text", self.folder / "other.txt", *flags, method=method)
            self.assertEqual((judged["text"], judged["windows"], judged["window_len"]), ("other.txt", 11, 128))
            metrics = self.evaluated(output, "--text", self.folder / "other.txt")
            if method == "fp8":  # its KL is as small as the tolerance
                self.assertAlmostEqual(judged["kl"], metrics[1]["kl"]["value"], delta=1e-6)
            else:
                self.check_agrees(judged, metrics)

    def test_windows_and_files_are_those_of_eval(self):
        texts = [self.folder / "other.txt", self.folder / "text.txt"]
        _, output, judged = self.judged("--judge-text", texts[0], "--judge-text", texts[1], "--judge-windows", "20",
                                        "--judge-window-len", "100", "--bits", "2")
        self.assertEqual((judged["text"], judged["windows"], judged["window_len"]), ("other.txt, text.txt", 20, 100))
        self.check_agrees(judged, self.evaluated(output, "--text", texts[0], "--text", texts[1], "--windows", "20",
                                                 "--window-len", "100"))

    def test_by_default_it_judges_on_what_no_sample_was_drawn_from(self):
        # A byte is a token: 62 windows of 64, of which 16 are samples, and 32 make the least number of tokens.
        _, _, judged = self.judged("--judge")
        self.assertEqual((judged["text"], judged["windows"], judged["window_len"]), ("text.txt, held out", 32, 64))
        _, _, rest = self.judged("--judge-windows", "46")
        self.assertEqual(rest["windows"], 46)

    def test_judging_leaves_the_checkpoint_and_its_record_alone(self):
        output = self.new_output()
        self.assertEqual(self.quantize(output).returncode, 0)
        done, with_judge, _ = self.judged("--judge", "--max-kl", "9")
        plain, judged = file_bytes(output), file_bytes(with_judge)
        self.assertIsNone(plain["nibble_report.json"].pop("judged"))
        self.assertFalse(judged["nibble_report.json"].pop("judged")["rejected"])
        self.assertEqual(plain, judged)
        self.assertRegex(done.stdout.splitlines()[-1],
                         r"^KL 0\.\d{4} ± 0\.\d{4} nats, top-1 agreement [\d.]+ %, perplexity [\d.]+ \(float: [\d.]+\), "
                         r"on 32 windows of 64 tokens of text.txt, held out$")

    def test_a_threshold_rejects_and_the_checkpoint_stays(self):
        done, output, judged = self.judged("--max-kl", "1e-5", exit_code=3)
        self.assertTrue(judged["rejected"])
        self.assertEqual(judged["max_kl"], 1e-5)
        self.assertIn("rejected: KL 0.", done.stdout)
        self.assertTrue((output / "config.json").exists())

    def test_the_page_shows_it(self):
        _, output, judged = self.judged("--judge", "--max-kl", "9")
        page = (output / "report.html").read_text()
        root = xml.etree.ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
        figures = dict(zip([e.text for e in root.iter("dt")], [e.text for e in root.iter("dd")]))
        self.assertEqual(figures["KL to the float model"],
                         f"{judged['kl']:.4f} ± {judged['kl_standard_error']:.4f} nats")
        self.assertEqual(figures["at most 9 nats allowed"], "accepted")

    def test_a_kill_before_or_while_judging_resumes_with_judging_alone(self):
        _, _, expected = self.judged("--judge")
        num_kills = 0
        for crash_at in range(1, 1000):
            output = self.new_output()
            crashed = self.quantize(output, "--judge", crash_at=crash_at)
            if crashed.returncode == 0:
                break
            self.assertEqual(crashed.returncode, -signal.SIGKILL, crashed.stderr)
            if not (output / "config.json").exists():
                shutil.rmtree(output)
                continue
            num_kills += 1
            json.loads((output / "nibble_report.json").read_text())
            self.assertEqual(len(self.evaluated(output, "--text", self.folder / "other.txt")), 2)  # it is a whole model
            resumed = self.quantize(output, "--judge", "--resume")
            self.assertEqual(resumed.returncode, 0, resumed.stderr)
            self.assertIn("was finished already", resumed.stderr)
            self.assertIn("KL ", resumed.stdout)
            self.assertEqual(json.loads((output / "nibble_report.json").read_text())["judged"], expected, crash_at)
            self.assertIn("KL to the float model", (output / "report.html").read_text())
            self.assertFalse((output / ".nibble").exists())
        self.assertGreater(num_kills, 4)

    def test_reproduce_neither_judges_nor_stumbles(self):
        text = self.folder / "vanishing.txt"
        shutil.copy(self.folder / "other.txt", text)
        _, output, _ = self.judged("--judge-text", text, "--judge-windows", "3", "--max-kl", "1e-5", exit_code=3)
        text.unlink()
        arguments = json.loads((output / "nibble_report.json").read_text())["arguments"]
        self.assertFalse([word for word in arguments if "judge" in word or "kl" in word], arguments)
        done = subprocess.run([NIBBLE, "reproduce", output], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotIn("judging", done.stderr)

    def test_what_cannot_be_judged_is_refused_before_anything_is_written(self):
        for flags, options, part in [
                (["--judge"], {"method": "rtn"}, "rtn does not calibrate"),
                (["--judge"], {"text": None}, "the model writes its own samples"),
                (["--judge"], {"samples": 62}, "nothing is held out; give --judge-text FILE"),
                (["--judge-windows", "47"], {}, "--judge-windows 47: text.txt, held out has 46 windows of 64 tokens"),
                (["--judge", "--judge-window-len", "32"], {}, "--judge-window-len"),
                (["--judge-text", "/nowhere.txt"], {}, "/nowhere.txt"),
                (["--judge-text", self.folder / "other.txt", "--judge-windows", "12"], {}, "other.txt has 11 windows"),
                (["--judge-text", self.folder / "other.txt", "--judge-window-len", "129"], {}, "at most 128 tokens"),
                (["--judge", "--max-kl", "-1"], {}, "max-kl"), (["--judge", "--max-kl", "nan"], {}, "max-kl")]:
            output = self.new_output()
            done = self.quantize(output, *flags, **options)
            message = done.stderr.strip().rsplit("\n", 1)[-1]
            self.assertEqual(done.returncode, 1, (flags, done.stderr))
            self.assertIn(part, message)
            self.assertFalse(output.exists(), flags)


if __name__ == "__main__":
    unittest.main()
