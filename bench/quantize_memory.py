#!/usr/bin/env python3
"""Peak resident memory and time of `nibble quantize` on models of a large shape and few layers.

usage: bench/quantize_memory.py [--nibble BIN] [--shape 7b|70b] [--layers N] [--samples N] [--seq-len N] --work FOLDER
           [-- FLAG...]

Writes FOLDER/SHAPE-model (random FP16 weights; kept for the next call), quantizes it into FOLDER/output, which is removed
again, and prints one line of JSON. FLAGs go to nibble; default: --method gptq.
"""

import argparse
import json
import math
import os
import pathlib
import random
import resource
import shutil
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "cli"))
from tiny_model import byte_tokenizer  # noqa: E402

SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8},
}
VOCABULARY = 32000


def tensor_shapes(config):
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens": [VOCABULARY, hidden], "model.norm": [hidden]}
    for i in range(config["num_hidden_layers"]):
        for name, shape in {"input_layernorm": [hidden], "post_attention_layernorm": [hidden],
                            "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [kv, hidden],
                            "self_attn.v_proj": [kv, hidden], "self_attn.o_proj": [hidden, hidden],
                            "mlp.gate_proj": [intermediate, hidden], "mlp.up_proj": [intermediate, hidden],
                            "mlp.down_proj": [hidden, intermediate]}.items():
            shapes[f"model.layers.{i}.{name}"] = shape
    return shapes


def random_halves(count):
    """Random signs and mantissas, one exponent: magnitudes of 1/64 to 1/32, as trained layers have."""
    values = bytearray(os.urandom(2 * count))
    values[1::2] = values[1::2].translate(bytes(byte & 0x83 | 9 << 2 for byte in range(256)))
    return values


def write_model(folder, shape, num_layers):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": num_layers,
              "vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
              "tie_word_embeddings": True, "torch_dtype": "float16", **SHAPES[shape]}
    shapes, header, offset = tensor_shapes(config), {}, 0
    for name, size in shapes.items():
        end = offset + 2 * math.prod(size)
        header[name + ".weight"] = {"dtype": "F16", "shape": size, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for size in shapes.values():
            if len(size) == 1:
                file.write(struct.pack("<e", 1.0) * size[0])
                continue
            for first in range(0, math.prod(size), 1 << 24):
                file.write(random_halves(min(1 << 24, math.prod(size) - first)))
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    (folder / "config.json").write_text(json.dumps(config))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble", default="build/release/bin/nibble")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("flags", nargs="*", default=["--method", "gptq"])
    options = parser.parse_args()
    model, output = options.work / f"{options.shape}-{options.layers}-model", options.work / "output"
    if not model.exists():
        write_model(model, options.shape, options.layers)
    text = options.work / "text.txt"
    letters = random.Random(2).choices("abcdefghijklmnopqrstuvwxyz", k=2 * options.samples * options.seq_len + 1)
    text.write_text("".join(letters))
    start = time.monotonic()
    done = subprocess.run([options.nibble, "quantize", model, "--output", output, "--calibration", text,
                           "--samples", str(options.samples), "--seq-len", str(options.seq_len), *options.flags],
                          stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    plan = next(line for line in done.stderr.splitlines() if "needs about" in line)
    shutil.rmtree(output)
    print(json.dumps({"shape": options.shape, "layers": options.layers, "samples": options.samples,
                      "seq_len": options.seq_len, "flags": options.flags,
                      "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, 2),
                      "seconds": round(seconds, 1), "plan": plan.split("needs about ")[1]}))


if __name__ == "__main__":
    main()
