"""`nibble serve` as the openai package and a process supervisor see it: real model, real sockets, real signals."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time

import openai
import pytest

QUESTIONS = [
    "Why is the sky blue?", "Name three fruits.", "What is the capital of France?", "Write a haiku about rain.",
    "How do bees make honey?", "What is 12 times 12?", "Tell me about the moon.", "Who wrote Hamlet?",
]
NUM_CLIENTS = 32
DEVICE = os.environ.get("NIBBLE_TEST_DEVICE")
DEVICE_FLAGS = ["--device", DEVICE] if DEVICE else []
# On the CPU an answer does not depend on its batch at all. On a GPU the batch decides in which order numbers are added:
# where two tokens are nearly equal, the other one may win.
MAX_CHANGED_BY_BATCH = 3 if DEVICE == "cuda" else 0


def assert_alike(answers, alone):
    changed = [pair for pair in zip(answers, alone, strict=True) if pair[0] != pair[1]]
    assert len(changed) <= MAX_CHANGED_BY_BATCH, changed


class Server:
    """A running `nibble serve`; its log is collected line by line."""

    def __init__(self, nibble, model, *flags, preexec=None, env=None):
        self.log = []
        # Several servers share a GPU: none may take all of its memory.
        limits = [] if not DEVICE or "--kv-cache-memory-bytes" in flags else ["--kv-cache-memory-bytes", "1G"]
        self.process = subprocess.Popen(
            [nibble, "serve", model, "--host", "127.0.0.1", "--port", "0", "--served-model-name", "m", *DEVICE_FLAGS,
             *limits, *flags],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=preexec, env=env)
        self.port = None
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(120), self.log
        assert self.port, "\n".join(self.log)

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))
            if found := re.search(r"serving m at http://127\.0\.0\.1:(\d+) after", line):
                self.port = int(found.group(1))
                self._ready.set()
        self._ready.set()

    def client(self, **kwargs):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=120,
                             **kwargs)

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def gauge(self, name):
        _, text = self.get("/metrics")
        return float(re.search(rf"^vllm:{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE).group(1))

    def wait_for_gauge(self, name, value, seconds=20):
        deadline = time.monotonic() + seconds
        while self.gauge(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.gauge(name)}, not {value}"
            time.sleep(0.05)

    def stop(self, signal_number=signal.SIGTERM):
        """Exit code, and the seconds that took."""
        start = time.monotonic()
        self.process.send_signal(signal_number)
        code = self.process.wait(60)
        return code, time.monotonic() - start


@pytest.fixture(scope="module")
def server(nibble, smollm2):
    running = Server(nibble, smollm2, "--threads", "2")
    yield running
    if running.process.poll() is None:
        assert running.stop()[0] == 0


def messages(i):
    return [{"role": "user", "content": f"{QUESTIONS[i % len(QUESTIONS)]} ({i})"}]


def stream_text(client, i, max_tokens=14):
    chunks = client.chat.completions.create(model="m", messages=messages(i), temperature=0, max_tokens=max_tokens,
                                            stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_models_are_listed(server):
    models = server.client().models.list().data
    assert [model.id for model in models] == ["m"]
    assert models[0].owned_by == "nibble"


def test_one_model_is_retrieved_by_its_name(server):
    assert server.client().models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError, match="The model `org/m` does not exist"):
        server.client().models.retrieve("org/m")


def test_chat_answers_in_english(server):
    answer = server.client().chat.completions.create(
        model="m", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0,
        max_tokens=30)
    assert answer.object == "chat.completion"
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_says_what_the_whole_answer_says(server):
    client = server.client()
    whole = client.chat.completions.create(model="m", messages=messages(0), temperature=0, max_tokens=20)
    chunks = list(client.chat.completions.create(model="m", messages=messages(0), temperature=0, max_tokens=20,
                                                 stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    finish_reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finish_reasons[:-1] == [None] * (len(finish_reasons) - 1)
    assert finish_reasons[-1] == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content


def test_completions_of_several_prompts(server):
    prompts = ["The capital of France is", "1, 2, 3, 4,"]
    answer = server.client().completions.create(model="m", prompt=prompts, n=2, temperature=0, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text and "Paris" in answer.choices[0].text
    assert answer.choices[2].text == answer.choices[3].text and "5" in answer.choices[2].text


def test_token_prompts_give_the_same_as_text(server):
    client = server.client()
    text = "The capital of France is"
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/tokenize", json.dumps({"prompt": text}), {"Content-Type": "application/json"})
    tokens = json.loads(connection.getresponse().read())["tokens"]
    by_text = client.completions.create(model="m", prompt=text, temperature=0, max_tokens=8)
    by_tokens = client.completions.create(model="m", prompt=tokens, temperature=0, max_tokens=8)
    assert by_text.choices[0].text == by_tokens.choices[0].text
    assert by_text.usage == by_tokens.usage


def test_echoed_logprobs_suit_lm_eval(server):
    """lm-eval reads token_logprobs[ctx:-1] and is_greedy from equality with the top entry."""
    client = server.client()
    generated = client.completions.create(model="m", prompt="The capital of France is", temperature=0, max_tokens=3,
                                          logprobs=1)
    text = "The capital of France is" + generated.choices[0].text
    scored = client.completions.create(model="m", prompt=text, temperature=0, max_tokens=1, logprobs=1, echo=True)
    logprobs = scored.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert "".join(logprobs.tokens[:-1]) == text
    own = generated.choices[0].logprobs
    assert logprobs.tokens[-4:-1] == own.tokens
    for value, top, expected in zip(logprobs.token_logprobs[-4:-1], logprobs.top_logprobs[-4:-1], own.token_logprobs):
        assert value == max(top.values()), "a greedy token is its position's best, printed alike"
        assert value == pytest.approx(expected, abs=0.05)


def test_chat_logprobs(server):
    answer = server.client().chat.completions.create(model="m", messages=messages(2), temperature=0, max_tokens=5,
                                                     logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob
        assert bytes(token.bytes).decode(errors="replace") == token.token


def test_seed_repeats_a_sampled_answer(server):
    client = server.client()
    sample = lambda seed: client.completions.create(model="m", prompt="Once upon a time", temperature=1.0, seed=seed,
                                                    max_tokens=12).choices[0].text
    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_stop_strings_end_the_text_before_them(server):
    client = server.client()
    whole = client.completions.create(model="m", prompt="1, 2, 3, 4,", temperature=0, max_tokens=16).choices[0].text
    assert "7" in whole
    stopped = client.completions.create(model="m", prompt="1, 2, 3, 4,", temperature=0, max_tokens=16, stop=["7"])
    assert stopped.choices[0].text == whole[:whole.index("7")]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].model_extra["stop_reason"] == "7"


def test_errors_are_the_packages_own(server):
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="The model `gpt-4` does not exist"):
        client.chat.completions.create(model="gpt-4", messages=messages(0))
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192 tokens. However, you requested"):
        client.chat.completions.create(model="m", messages=messages(0), max_tokens=9000)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="m", messages=messages(0), temperature=-1)
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.create(model="m", messages=messages(0), response_format={"type": "json_object"})


def test_32_clients_get_what_each_gets_alone_and_killed_ones_free_their_blocks(server):
    client = server.client()
    with concurrent.futures.ThreadPoolExecutor(NUM_CLIENTS) as pool:
        together = list(pool.map(lambda i: stream_text(server.client(), i), range(NUM_CLIENTS)))
    alone = [stream_text(client, i) for i in range(NUM_CLIENTS)]
    assert_alike(together, alone)
    assert all(alone)

    def run(i):
        if i % 2 == 0:
            return stream_text(server.client(), i)
        chunks = server.client().chat.completions.create(model="m", messages=messages(i), max_tokens=4000,
                                                         stream=True, extra_body={"ignore_eos": True})
        for _ in zip(range(4), chunks):
            pass
        chunks.response.close()  # the connection goes away with a stream half read
        return None

    with concurrent.futures.ThreadPoolExecutor(NUM_CLIENTS) as pool:
        survivors = list(pool.map(run, range(NUM_CLIENTS)))
    assert_alike(survivors[::2], alone[::2])
    server.wait_for_gauge("num_requests_running", 0)
    server.wait_for_gauge("num_requests_waiting", 0)
    server.wait_for_gauge("kv_cache_usage_perc", 0)
    assert stream_text(client, 0) == alone[0]


def test_disconnected_clients_leave_nothing_behind(server):
    """200 clients go away, streaming or waiting for a whole answer."""
    body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}
    for i in range(200):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        text = json.dumps({**body, "stream": i % 2 == 0})
        connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           f"Content-Length: {len(text)}\r\n\r\n{text}".encode())
        if i % 20 == 0:
            connection.recv(1)
        connection.close()
    server.wait_for_gauge("num_requests_running", 0)
    server.wait_for_gauge("kv_cache_usage_perc", 0)


def hold_streams(server, num_streams):
    """Clients in the middle of long streams; each future gives its last finish_reason."""
    started = threading.Barrier(num_streams + 1)

    def run(i):
        chunks = iter(server.client().chat.completions.create(
            model="m", messages=messages(i), max_tokens=4000, stream=True, extra_body={"ignore_eos": True}))
        next(chunks)
        started.wait(120)
        last = None
        for chunk in chunks:
            last = chunk.choices[0].finish_reason
        return last

    pool = concurrent.futures.ThreadPoolExecutor(num_streams)
    futures = [pool.submit(run, i) for i in range(num_streams)]
    started.wait(120)
    return futures


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_ends_within_5_seconds(nibble, smollm2, signal_number):
    server = Server(nibble, smollm2, "--threads", "2")
    futures = hold_streams(server, NUM_CLIENTS)
    code, seconds = server.stop(signal_number)
    assert code == 0, server.log
    assert seconds < 5
    assert {future.result(10) for future in futures} == {"abort"}, "every stream ends properly"


def test_a_drain_lets_short_requests_finish_and_refuses_new_ones(nibble, smollm2):
    server = Server(nibble, smollm2, "--threads", "2", "--shutdown-timeout", "30")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream_text, server.client(), 0, 60)
        server.wait_for_gauge("num_requests_running", 1)
        server.process.send_signal(signal.SIGTERM)
        while not any("shutting down" in line for line in server.log):
            time.sleep(0.01)
        connection.request("POST", "/v1/completions", '{"prompt": "x"}', {"Content-Type": "application/json"})
        refused = connection.getresponse()
        assert refused.status == 503 and b"shutting down" in refused.read()
        assert running.result(60)
    assert server.process.wait(10) == 0


def test_a_second_signal_ends_at_once(nibble, smollm2):
    server = Server(nibble, smollm2, "--threads", "2", "--shutdown-timeout", "60")
    hold_streams(server, 2)
    server.process.send_signal(signal.SIGTERM)
    while not any("shutting down" in line for line in server.log):
        time.sleep(0.01)
    code, seconds = server.stop()
    assert code == 1
    assert seconds < 2


def test_a_signal_during_load_ends_with_code_0(nibble, smollm2):
    process = subprocess.Popen([nibble, "serve", smollm2, "--port", "0", *DEVICE_FLAGS], stderr=subprocess.PIPE, text=True)
    process.stderr.readline()  # the first line comes while it loads
    process.terminate()
    assert process.wait(10) == 0


def test_a_taken_port_is_one_line_and_exit_code_1(nibble, smollm2, server):
    second = subprocess.run([nibble, "serve", smollm2, "--host", "127.0.0.1", "--port", str(server.port)],
                            capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1 and f"port {server.port}" in second.stderr
    assert "already in use" in second.stderr


def test_few_descriptors_and_many_idle_clients(nibble, smollm2):
    """ulimit -n 64: clients that only hold a connection are dropped in favour of those that ask."""
    server = Server(nibble, smollm2, "--threads", "2",
                    preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(200)]
    for _ in range(5):
        assert server.get("/health")[0] == 200
    assert stream_text(server.client(), 0)
    for connection in idle:
        connection.close()
    assert server.stop()[0] == 0


def test_api_keys_come_from_the_environment(nibble, smollm2):
    server = Server(nibble, smollm2, "--threads", "2", env={"VLLM_API_KEY": "secret"})
    assert server.get("/v1/models") == (401, '{"error":"Unauthorized"}')
    with pytest.raises(openai.AuthenticationError):
        server.client().models.list()
    assert openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret").models.list().data
    assert server.stop()[0] == 0


def refused(nibble, *flags):
    result = subprocess.run([nibble, "serve", *flags], capture_output=True, text=True, timeout=60)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.returncode, result.stderr


def test_wrong_flags_say_what_is_wrong(nibble, smollm2):
    assert refused(nibble, smollm2, "--max-modle-len", "10") == (
        2, "nibble: error: unknown flag --max-modle-len; did you mean --max-model-len? (see nibble serve --help)\n")
    code, text = refused(nibble, smollm2, "-tp", "2")
    assert code == 1 and "--tensor-parallel-size 2" in text
    code, text = refused(nibble, smollm2, "--ssl-keyfile", "x")
    assert code == 1 and "--ssl-keyfile" in text and "proxy" in text
    code, text = refused(nibble, smollm2, "--max-model-len", "12q")
    assert code == 2 and "12q" in text
    code, text = refused(nibble, smollm2, "--quantization", "awq")
    assert code == 1 and "nibble quantize --method awq" in text
    code, text = refused(nibble, "/no/such/model")
    assert code == 1 and "/no/such/model" in text


def test_vllms_start_line_works(nibble, smollm2):
    """Spellings with underscores, counts with suffixes, and flags that mean nothing here."""
    server = Server(nibble, smollm2, "--threads", "2", "--max_model_len", "1k", "-tp", "1", "--enforce-eager",
                    "--gpu-memory-utilization", "0.9", "--dtype", "half", "--disable-log-requests", "--swap-space", "4",
                    "--kv-cache-memory-bytes", "256M", "--max-num-seqs", "8", "--generation-config", "vllm")
    assert server.client().models.list().data[0].model_extra["max_model_len"] == 1000
    warning = [line for line in server.log if "no effect" in line]
    assert len(warning) == 1 and "--enforce-eager" in warning[0] and "--swap-space" in warning[0]
    assert ("--gpu-memory-utilization" in warning[0]) == (DEVICE != "cuda")
    assert server.stop()[0] == 0
