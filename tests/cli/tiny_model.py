"""Tiny models for tests of the command line: random weights, a byte tokenizer, in plain Python."""

import json
import random
import struct

VOCABULARY = 256


def byte_tokenizer():
    """One token a byte, by GPT-2's table of printable stand-ins."""
    vocabulary, stand_in = {}, 256
    for byte in range(256):
        printable = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        vocabulary[chr(byte if printable else stand_in)] = byte
        stand_in += not printable
    return {"version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}


def write_tiny_llama(folder, num_layers=1, hidden=64, intermediate=96, replace=None, zero=()):
    """FP16 weights; `replace` maps a tensor's name to the first of its values, those of `zero` are zero."""
    shapes = {"model.embed_tokens": [VOCABULARY, hidden], "model.norm": [hidden]}
    layer = {"input_layernorm": [hidden], "post_attention_layernorm": [hidden], "mlp.gate_proj": [intermediate, hidden],
             "mlp.up_proj": [intermediate, hidden], "mlp.down_proj": [hidden, intermediate]}
    layer.update({f"self_attn.{name}_proj": [hidden, hidden] for name in "qkvo"})
    for i in range(num_layers):
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    header, values, generator = {}, bytearray(), random.Random(1)
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        numbers = [generator.gauss(0, 0.1) for _ in range(count)] if len(shape) == 2 else [1.0] * count
        if name in zero:
            numbers = [0.0] * count
        if replace and name in replace:
            numbers[0] = replace[name]
        begin = len(values)
        values += struct.pack(f"<{count}e", *numbers)
        header[f"{name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, len(values)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + values)
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": num_layers, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "torch_dtype": "float16"}))


def varied_text(num_bytes, seed=7):
    generator = random.Random(seed)
    return "".join(generator.choice("abcdefghijklmnopqrstuvwxyz  .,\n") for _ in range(num_bytes))


def file_bytes(folder):
    """{relative name: content} of every file, hidden ones included. Reports tell times, which no two runs share: they
    are compared without."""
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
                if path.is_file()}
    if "nibble_report.json" in contents:
        contents["nibble_report.json"] = without_times(json.loads(contents["nibble_report.json"]))
        del contents["report.html"]
    return contents


def without_times(report):
    layers = [{key: value for key, value in layer.items() if key != "seconds"} for layer in report["layers"]]
    return {**report, "seconds": None, "layers": layers}
