#!/usr/bin/env python3
"""How long `nibble serve` takes until it answers, and how much memory it needs at most.

usage: startup.py NIBBLE MODEL [--runs 5] [--kv-cache-memory-bytes 64M]

Each run starts the server with the model's files in the page cache, waits for /health, sends 16 chat requests at once,
and reads VmHWM, the kernel's own peak of resident memory. Packed weights and KV cache are what the server's log states.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


def ask(port, number):
    body = {"messages": [{"role": "user", "content": f"Tell me a story about the number {number}. " * 20}],
            "max_tokens": 32, "temperature": 0}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["usage"]["completion_tokens"]


def peak_resident_bytes(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def measure(nibble, model, kv_bytes):
    port = free_port()
    command = [nibble, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--kv-cache-memory-bytes", kv_bytes]
    start = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not is_healthy(port):
            if server.poll() is not None:
                sys.exit(server.stderr.read())
            time.sleep(0.002)  # the resolution of the figure, not a wait for an event we could have
        ready_s = time.monotonic() - start
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: ask(port, number), range(16)))
        peak = peak_resident_bytes(server.pid)
    finally:
        server.terminate()
        log = server.communicate()[1]
    stated = re.search(r"([\d.]+) (\w+) of weights, KV cache of \d+ tokens in ([\d.]+) (\w+)", log)
    weights = float(stated[1]) * UNITS[stated[2]]
    kv = float(stated[3]) * UNITS[stated[4]]
    return ready_s, peak, weights, kv


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("nibble")
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kv-cache-memory-bytes", default="64M")
    arguments = parser.parse_args()
    runs = [measure(arguments.nibble, arguments.model, arguments.kv_cache_memory_bytes) for _ in range(arguments.runs)]
    ready = [run[0] for run in runs]
    peak = max(run[1] for run in runs)
    _, _, weights, kv = runs[0]
    print(json.dumps({
        "model": pathlib.Path(arguments.model).name,
        "ready_s": {"min": round(min(ready), 3), "median": round(statistics.median(ready), 3),
                    "max": round(max(ready), 3)},
        "peak_resident_mb": round(peak / 1e6, 1),
        "weights_mb": round(weights / 1e6, 1),
        "kv_cache_mb": round(kv / 1e6, 1),
        "beside_weights_and_kv_mb": round((peak - weights - kv) / 1e6, 1),
    }))


if __name__ == "__main__":
    main()
