"""How every subcommand behaves on the command line (unittest: needs nothing but Python and the binary)."""

import os
import subprocess
import tempfile
import unittest

NIBBLE = os.environ["NIBBLE_BIN"]
SUBCOMMANDS = ["quantize", "eval", "serve", "generate", "import", "bench"]


def run(*arguments, **options):
    return subprocess.run([NIBBLE, *arguments], capture_output=True, timeout=60, **options)


class Usage(unittest.TestCase):
    def check_usage_error(self, arguments, *parts):
        done = run(*arguments)
        message = done.stderr.decode()
        self.assertEqual(done.returncode, 2, message)
        self.assertEqual(done.stdout, b"")
        self.assertTrue(message.startswith("nibble: error: "), message)
        self.assertEqual(message.count("\n"), 1, message)
        for part in parts:
            self.assertIn(part, message)

    def test_version_and_help_exit_with_0_on_stdout(self):
        self.assertRegex(run("--version").stdout.decode(), r"^nibble \d+\.\d+\.\d+\n$")
        for arguments in [["--help"], *[[name, "--help"] for name in SUBCOMMANDS]]:
            done = run(*arguments)
            self.assertEqual(done.returncode, 0, arguments)
            self.assertGreater(len(done.stdout), 100, arguments)
            self.assertEqual(done.stderr, b"", arguments)

    def test_help_lists_every_subcommand(self):
        text = run("--help").stdout.decode()
        for name in SUBCOMMANDS:
            self.assertRegex(text, rf"\n  {name} +\w")

    def test_no_arguments_print_the_usage_and_exit_with_2(self):
        done = run()
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"usage: nibble SUBCOMMAND", done.stderr)

    def test_a_mistyped_subcommand_is_suggested(self):
        self.check_usage_error(["serv"], "unknown subcommand serv", "did you mean serve?")
        self.check_usage_error(["--verson"], "unknown flag --verson")
        self.check_usage_error(["frobnicate"], "unknown subcommand frobnicate (see nibble --help)")

    def test_a_mistyped_flag_is_suggested(self):
        self.check_usage_error(["generate", "x", "--prompt", "y", "--temprature", "0"],
                               "unknown flag --temprature", "did you mean --temperature?", "nibble generate --help")
        self.check_usage_error(["quantize", "x", "--metod", "awq"], "unknown flag --metod", "did you mean --method?")

    def test_an_empty_output_is_refused_by_name(self):
        for arguments in [["quantize", "x", "--method", "rtn"], ["import", "x.gguf"], ["convert", "x", "--format", "gptq"],
                          ["reproduce", "x"]]:
            self.check_usage_error([*arguments, "--output", ""], "--output: names no folder")

    def test_a_missing_or_bad_value_names_its_flag(self):
        self.check_usage_error(["generate", "x"], "--prompt")
        self.check_usage_error(["generate", "x", "--prompt", "y", "--max-tokens", "many"], "--max-tokens")
        self.check_usage_error(["generate", "x", "--prompt", "y", "--max-tokens", "0"], "--max-tokens")
        self.check_usage_error(["generate", "x", "--prompt", "y", "--device", "tpu"], "--device")

    def test_bounds_are_named_and_hold_for_what_is_no_number(self):
        generate = ["generate", "x", "--prompt", "y"]
        self.check_usage_error([*generate, "--max-tokens", "0"], "--max-tokens: 0 is no number of at least 1")
        self.check_usage_error([*generate, "--temperature", "nan"], "--temperature: nan is no number of at least 0")
        self.check_usage_error([*generate, "--top-p", "1.5"], "--top-p: 1.5 is no number between 0 and 1")
        for name in ["generate", "serve", "eval", "bench"]:
            prompt = ["--prompt", "y"] if name == "generate" else []
            self.check_usage_error([name, "x", *prompt, "--threads", "1000000"], "--threads", "between 0 and 1024")
            self.check_usage_error([name, "x", *prompt, "--max-model-len", "many"], "--max-model-len", "is no count")

    def test_what_needs_chat_says_so(self):
        self.check_usage_error(["generate", "x", "--prompt", "y", "--system", "z"], "--system requires --chat")

    def test_more_than_one_device_says_what_to_do(self):
        done = run("serve", "x", "-tp", "2")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"--tensor-parallel-size 2: this nibble runs a model on one device; leave the flag out", done.stderr)

    def test_flags_may_be_written_with_underscores(self):
        done = run("generate", "/no/such/model", "--prompt", "y", "--max_tokens=5", "--top_p", "0.5")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(b"/no/such/model: no such folder or file", done.stderr)


class Failure(unittest.TestCase):
    def test_a_missing_model_is_one_line_and_exit_code_1(self):
        for arguments in [["generate", "/no/such/model", "--prompt", "y"], ["serve", "/no/such/model"],
                          ["eval", "/no/such/model", "--tasks", "ppl", "--text", "/dev/null"],
                          ["quantize", "/no/such/model", "--method", "rtn", "--output", "/no/such/output"],
                          ["import", "/no/such/model", "--output", "/no/such/output"]]:
            done = run(*arguments)
            self.assertEqual(done.returncode, 1, (arguments, done.stderr))
            self.assertEqual(done.stdout, b"", arguments)
            message = done.stderr.decode()
            self.assertTrue(message.startswith("nibble: error: "), message)
            self.assertIn("/no/such/model", message)
            self.assertEqual(message.count("\n"), 1, message)

    def test_a_model_on_the_hub_that_is_not_here_says_how_to_get_it(self):
        with tempfile.TemporaryDirectory() as cache:
            done = run("generate", "org/name", "--prompt", "y", env={**os.environ, "HF_HUB_CACHE": cache})
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"huggingface-cli download org/name", done.stderr)

    def test_control_characters_of_an_argument_stay_out_of_messages(self):
        done = run("serve\r\n\x1b[31mnibble: error: forged")
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertNotIn(b"\x1b", done.stderr)

    def test_a_closed_standard_output_ends_quietly(self):
        read_end, write_end = os.pipe()
        os.close(read_end)
        done = subprocess.run([NIBBLE, "--help"], stdout=write_end, stderr=subprocess.PIPE, timeout=60)
        os.close(write_end)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_a_closed_or_full_standard_error_changes_no_exit_code(self):
        for redirection in ["2>&-", "2>/dev/full", "<&- >&- 2>&-"]:
            done = subprocess.run(["sh", "-c", f'"$0" generate /no/such/model --prompt x {redirection}', NIBBLE], timeout=60)
            self.assertEqual(done.returncode, 1, redirection)

    def test_the_log_level_is_checked(self):
        done = run("generate", "/no/such/model", "--prompt", "x", env={**os.environ, "NIBBLE_LOG_LEVEL": "loud"})
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"NIBBLE_LOG_LEVEL=loud: choose debug, info, warning or error", done.stderr)

    def test_a_full_disk_under_standard_output_is_an_error(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([NIBBLE, "--help"], stdout=full, stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"cannot write to standard output: No space left on device", done.stderr)


if __name__ == "__main__":
    unittest.main()
