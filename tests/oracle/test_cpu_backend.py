"""The CPU backend's fast mode against the reference backend, on real weights: FP16 and 4-bit GPTQ."""

import json
import subprocess

import numpy
import pytest

TEXT = """The history of the steam engine begins long before the first working piston. In the first century, Hero of
Alexandria described a hollow sphere that turned as steam escaped from two bent tubes. It did no work, and for more than
a thousand years nobody asked it to. The first engines that earned their coal pumped water out of mines: Savery's, which
had no piston at all, and Newcomen's, whose cylinder was cooled at every stroke. James Watt saw how much heat that cost,
gave the steam a separate place to condense, and doubled what a ton of coal could lift. def area(radius): return 3.14159
* radius ** 2. The recipe asks for 250 g of flour, 3 eggs, a pinch of salt and 0.5 l of milk; let the batter rest for 20
minutes. "Where were you?" she asked. "At home," he said, "all night," and looked at his shoes."""


def token_ids(checkpoint):
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(TEXT).ids


def log_probabilities(build_dir, checkpoint, device, ids, folder):
    (folder / "prompts.json").write_text(json.dumps([ids]), encoding="utf-8")
    subprocess.run([build_dir / "bin" / "nibble_logits", checkpoint, device, "1", folder / "prompts.json",
                    folder / "sequences.json", folder / "logits.f32"], check=True)
    rows = numpy.fromfile(folder / "logits.f32", dtype=numpy.float32)
    rows = rows.reshape(-1, json.loads((checkpoint / "config.json").read_text())["vocab_size"])[:len(ids)]
    rows = rows.astype(numpy.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - numpy.log(numpy.exp(rows).sum(axis=1, keepdims=True))


def mean_kl(build_dir, checkpoint, folder):
    ids = token_ids(checkpoint)
    reference = log_probabilities(build_dir, checkpoint, "exact", ids, folder)
    cpu = log_probabilities(build_dir, checkpoint, "cpu", ids, folder)
    return float((numpy.exp(reference) * (reference - cpu)).sum(axis=1).mean())


def test_fp16_kl_to_the_reference_is_below_2e_3(build_dir, smollm2, tmp_path):
    kl = mean_kl(build_dir, smollm2, tmp_path)
    print(f"mean KL, FP16: {kl:.2e}")
    assert 0 <= kl < 2e-3


@pytest.mark.parametrize("method", ["gptq", "awq", "squeezellm"])
def test_4_bit_kl_to_the_reference_is_below_2e_3(build_dir, smollm2, tmp_path, method):
    quantized = tmp_path / method
    calibration = tmp_path / "calibration.txt"
    calibration.write_text(TEXT * 4, encoding="utf-8")
    subprocess.run([build_dir / "bin" / "nibble", "quantize", smollm2, "--method", method, "--bits", "4", "--group-size",
                    "64", "--calibration", calibration, "--samples", "2", "--seq-len", "128", "--output", quantized],
                   check=True)
    kl = mean_kl(build_dir, quantized, tmp_path)
    print(f"mean KL, {method} 4 bit: {kl:.2e}")
    assert 0 <= kl < 2e-3
