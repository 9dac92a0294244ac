"""`nibble reproduce` makes a checkpoint again from its report (unittest: needs only Python)."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree

from tiny_model import varied_text, write_tiny_llama

NIBBLE = os.environ["NIBBLE_BIN"]


class Reproduce(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        write_tiny_llama(cls.folder / "model", num_layers=2)
        (cls.folder / "text.txt").write_text(varied_text(3000))
        cls.flags = ["--calibration", cls.folder / "text.txt", "--samples", "16", "--seq-len", "64", "--w_bit", "3",
                     "--group-size=32", "--zero_point", "true", "--desc_act"]
        done = cls.run_nibble("quantize", "--method", "gptq", *cls.flags, cls.folder / "model", "--output",
                              cls.folder / "made")
        assert done.returncode == 0, done.stderr

    @staticmethod
    def run_nibble(*arguments):
        return subprocess.run([NIBBLE, *arguments], capture_output=True, text=True, timeout=60)

    def copy(self, name):
        return pathlib.Path(shutil.copytree(self.folder / "made", self.folder / name))

    def test_report_records_what_was_asked_and_what_became_of_each_linear(self):
        report = json.loads((self.folder / "made" / "nibble_report.json").read_text())
        self.assertEqual(report["arguments"], [
            "--method", "gptq", "--bits", "3", "--group-size", "32", "--zero_point", "true", "--desc_act", "true",
            "--calibration", str(self.folder / "text.txt"), "--samples", "16", "--seq-len", "64"])
        self.assertEqual(len(report["layers"]), 14)
        for layer in report["layers"]:
            self.assertLess(layer["output_error"], layer["rtn_error"], layer["name"])
            self.assertGreater(layer["bits_per_weight"], 3)

    def test_page_is_well_formed_and_names_every_linear(self):
        page = (self.folder / "made" / "report.html").read_text()
        root = xml.etree.ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
        cells = [cell.text for cell in root.iter("td")]
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"]:
            self.assertIn(f"model.layers.1.self_attn.{name}", cells)

    def test_the_same_comes_out_again_and_nothing_is_left_behind(self):
        folder = self.copy("same")
        os.utime(self.folder / "model" / "config.json", (1, 1))  # a copied model has other times
        done = self.run_nibble("reproduce", folder)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"^.*same: \d+ files made again, byte for byte the same\n$")
        self.assertFalse(self.folder.joinpath("same.reproduced").exists())

    def test_one_changed_bit_is_found(self):
        folder = self.copy("changed")
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-100] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        done = self.run_nibble("reproduce", folder)
        self.assertEqual(done.returncode, 3, done.stdout + done.stderr)
        self.assertIn("differ from what was made again", done.stdout)
        self.assertIn("model.safetensors", done.stdout)
        self.assertTrue(self.folder.joinpath("changed.reproduced", "config.json").exists())

    def test_model_and_text_may_lie_elsewhere_now(self):
        folder = self.copy("moved")
        report = folder / "nibble_report.json"
        record = json.loads(report.read_text())
        record["model"] = "gone"
        record["arguments"][record["arguments"].index("--calibration") + 1] = "gone.txt"
        report.write_text(json.dumps(record))
        self.assertEqual(self.run_nibble("reproduce", folder).returncode, 1)
        done = self.run_nibble("reproduce", folder, "--model", self.folder / "model", "--calibration",
                               self.folder / "text.txt")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_folders_without_a_report_and_damaged_reports_are_clear_errors(self):
        for text, part in [(None, "holds no nibble_report.json"), ("{", "nibble_report.json"),
                           ('{"report_version": 9}', "report_version 9"),
                           ('{"report_version": 1}', "model")]:
            folder = self.folder / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if text:
                (folder / "nibble_report.json").write_text(text)
            done = self.run_nibble("reproduce", folder)
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            self.assertIn(part, done.stderr)
            self.assertEqual(done.stderr.count("nibble: error"), 1)


if __name__ == "__main__":
    unittest.main()
