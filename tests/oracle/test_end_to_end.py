"""import → quantize → eval → generate → serve on SmolLM2, as a user types it; the clients are curl and openai."""

import json
import pathlib
import signal
import socket
import subprocess
import urllib.request

import openai
import pytest
from safetensors import safe_open

QUESTION = "What is the capital of France?"
ENGLISH = pathlib.Path(__file__).resolve().parents[2] / "LICENSE"  # prose of 2,000 tokens


@pytest.fixture(scope="module")
def quantized(nibble, smollm2, tmp_path_factory):
    """SmolLM2 by round-to-nearest at 4 bits, which needs no calibration, in GPTQ's format."""
    folder = tmp_path_factory.mktemp("quantized") / "smollm2-rtn"
    subprocess.run([nibble, "quantize", smollm2, "--method", "rtn", "--bits", "4", "--group-size", "64",
                    "--output", folder], check=True)
    return folder


def test_quantized_checkpoint_is_a_gptq_checkpoint_of_a_quarter_of_the_size(smollm2, quantized):
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert (config["quant_method"], config["bits"], config["group_size"]) == ("gptq", 4, 64)
    with safe_open(quantized / "model.safetensors", "numpy") as tensors:
        names = set(tensors.keys())
        down = tensors.get_tensor("model.layers.0.mlp.down_proj.qweight")
    assert down.shape == (1536 * 4 // 32, 576) and str(down.dtype) == "int32"
    assert "model.layers.0.mlp.down_proj.weight" not in names
    for side_file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]:
        assert (quantized / side_file).read_bytes() == (smollm2 / side_file).read_bytes()


def test_quantizing_into_an_existing_checkpoint_is_refused(nibble, smollm2, quantized):
    before = (quantized / "config.json").read_bytes()
    done = subprocess.run([nibble, "quantize", smollm2, "--method", "rtn", "--output", quantized], capture_output=True)
    assert done.returncode == 1 and str(quantized).encode() in done.stderr
    assert (quantized / "config.json").read_bytes() == before


def test_eval_judges_by_the_threshold_and_says_so_in_its_exit_code(nibble, smollm2, quantized, tmp_path):
    command = [nibble, "eval", quantized, "--baseline", smollm2, "--tasks", "ppl,kl", "--text", ENGLISH,
               "--windows", "1", "--window-len", "512", "--json", tmp_path / "report.json"]
    codes = {limit: subprocess.run([*command, "--max-kl", limit], capture_output=True).returncode
             for limit in ["0.0001", "100"]}
    assert codes == {"0.0001": 3, "100": 0}
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert subprocess.run(command, capture_output=True).returncode == 0  # not judged


def test_generate_answers_a_question(nibble, quantized, device_flags):
    done = subprocess.run([nibble, "generate", quantized, "--chat", "--prompt", QUESTION, "--temperature", "0",
                           "--max-tokens", "20", *device_flags], check=True, capture_output=True)
    assert "Paris" in done.stdout.decode("utf-8")
    assert b"tokens/s" in done.stderr


@pytest.fixture()
def server(nibble, quantized, device_flags):
    """(process, base URL) of a ready server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([nibble, "serve", quantized, "--host", "127.0.0.1", "--port", str(port),
                                "--served-model-name", "small", *device_flags])
    url = f"http://127.0.0.1:{port}"
    ready = subprocess.run(["curl", "-sf", "--retry", "60", "--retry-delay", "1", "--retry-all-errors", f"{url}/health"])
    assert ready.returncode == 0
    yield process, url
    process.kill()
    process.wait()


def test_the_served_model_answers_openai_clients_and_ends_with_0_on_sigterm(server):
    process, url = server
    assert json.load(urllib.request.urlopen(f"{url}/v1/models"))["data"][0]["id"] == "small"
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    question = {"model": "small", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0,
                "max_tokens": 20}
    whole = client.chat.completions.create(**question).choices[0].message.content
    chunks = client.chat.completions.create(**question, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "Paris" in whole
    assert "".join(pieces) == whole and len(pieces) > 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
