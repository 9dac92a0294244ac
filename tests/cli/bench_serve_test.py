"""nibble bench serve against `nibble serve` and against servers that misbehave (unittest: needs nothing but Python and the
binary)."""

import contextlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import unittest

import tiny_model

NIBBLE = os.environ["NIBBLE_BIN"]
DEVICE = os.environ.get("NIBBLE_TEST_DEVICE", "cpu")


def bench_serve(*flags):
    return subprocess.run([NIBBLE, "bench", "serve", "--random-input-len", "20", "--random-output-len", "8", *map(str, flags)],
                          capture_output=True, timeout=60)


class Server(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        tiny_model.write_tiny_llama(cls.folder / "model")
        cls.process = subprocess.Popen(
            [NIBBLE, "serve", cls.folder / "model", "--host", "127.0.0.1", "--port", "0", "--device", DEVICE,
             "--served-model-name", "tiny"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        log = []
        for line in cls.process.stderr:
            log.append(line)
            if found := re.search(r"serving tiny at (http://127\.0\.0\.1:\d+) after", line):
                cls.url = found[1]
                break
        else:
            raise RuntimeError("".join(log))
        cls.reader = threading.Thread(target=cls.process.stderr.read, daemon=True)  # lest the server waits for a reader
        cls.reader.start()

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait(30)
        cls.reader.join(5)
        cls.process.stderr.close()
        cls.temporary.cleanup()

    def measure(self, *flags):
        output = self.folder / "serve.json"
        done = bench_serve("--base-url", self.url, "--json", output, *flags)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(output.read_text()), done.stdout.decode()

    def test_every_token_is_counted_and_every_latency_told(self):
        result, text = self.measure("--num-prompts", 9, "--max-concurrency", 4)
        self.assertEqual((result["completed"], result["failed"], result["model"]), (9, 0, "tiny"))
        self.assertAlmostEqual(result["output_tokens_per_s"] * result["duration_seconds"], 9 * 8, places=6)
        self.assertAlmostEqual(result["total_tokens_per_s"] * result["duration_seconds"], 9 * 28, places=6)
        for name in ["ttft_ms", "tpot_ms", "itl_ms", "end_to_end_ms"]:
            self.assertGreater(result[name]["median"], 0, name)
            self.assertGreaterEqual(result[name]["p99"], result[name]["median"], name)
        self.assertGreater(result["end_to_end_ms"]["mean"], result["ttft_ms"]["mean"])
        self.assertIn("9 of 9 requests", text)

    def test_addresses_may_have_a_path_and_be_of_ipv6(self):
        result, _ = self.measure("--num-prompts", 1)
        self.assertEqual(result["completed"], 1)
        done = bench_serve("--base-url", self.url + "/nowhere/", "--model", "tiny", "--num-prompts", 1)
        self.assertIn(b"answers 404", done.stderr)
        done = bench_serve("--base-url", "http://[::1]:9", "--model", "tiny", "--num-prompts", 1)
        self.assertIn(b"the server at [::1]:9 does not answer", done.stderr)

    def test_requests_arrive_at_their_rate(self):
        result, _ = self.measure("--num-prompts", 12, "--request-rate", 40)
        # 11 exponential gaps of 25 ms: their sum is Erlang distributed, and below 60 ms one time in 50,000; seeded.
        self.assertGreater(result["duration_seconds"], 0.06)
        self.assertEqual(result["request_rate"], 40)

    def test_what_the_server_refuses_is_an_error(self):
        done = bench_serve("--base-url", self.url, "--num-prompts", 2, "--vocab-size", 1000000, "--seed", 1)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"2 of 2 requests failed; the first: the server at 127.0.0.1", done.stderr)
        self.assertIn(b"out of vocabulary", done.stderr)


class Broken(http.server.BaseHTTPRequestHandler):
    """Ends its stream before the usage."""
    protocol_version = "HTTP/1.1"

    def do_POST(self):  # noqa: N802
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(b'data: {"choices": [{"text": "a"}]}\n\n' + self.server.tail)
            self.close_connection = True

    def log_message(self, *_):
        pass


class Misbehaving(unittest.TestCase):
    def check(self, tail, message):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
        server.tail = tail
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = bench_serve("--port", server.server_port, "--model", "m", "--num-prompts", "1")
        server.shutdown()
        server.server_close()
        self.assertEqual(done.returncode, 1)
        self.assertIn(message, done.stderr)
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)

    def test_a_stream_that_breaks_off(self):
        self.check(b"", b"broke off its answer")

    def test_a_stream_that_brings_an_error(self):
        self.check(b'data: {"error": {"message": "the engine died"}}\n\n', b"the engine died")

    def test_a_stream_that_is_no_json(self):
        self.check(b"data: {oops}\n\n", b"stream: ")

    def test_nobody_there(self):
        done = bench_serve("--port", "9")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"the server at 127.0.0.1:9 does not answer", done.stderr)

    def test_addresses_and_rates_are_checked(self):
        for flags, message in [(["--base-url", "https://x"], b"begins with http://"), (["--base-url", "http://"], b"names no host"),
                               (["--base-url", "http://a:b"], b"port is no number"), (["--request-rate", "fast"], b"--request-rate fast"), (["--request-rate", "5x"], b"--request-rate 5x")]:
            done = bench_serve(*flags)
            self.assertEqual(done.returncode, 1, flags)
            self.assertIn(message, done.stderr)


if __name__ == "__main__":
    unittest.main()
