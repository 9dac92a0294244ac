"""Every architecture and config quirk that nibble serves, on tiny random models, against transformers in float32."""

import json
import subprocess

import numpy
import pytest

pytestmark = pytest.mark.torch

SIZES = dict(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("LlamaConfig", {}),
    "llama-mha": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("LlamaConfig", {"head_dim": 32}),
    "llama-theta": ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama-linear-rope": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama3-rope": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "mistral-window": ("MistralConfig", {"sliding_window": 24}),
    "qwen2": ("Qwen2Config", {}),
}
LENGTHS = [1, 17, 200]
NUM_GREEDY = 8  # decoded token by token over the paged cache


def save_tiny_model(folder, config_class, extra):
    import tokenizers
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**{**SIZES, **extra})
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # initialised to zero, which would hide a bias that is not applied
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("proj.weight"):  # large enough that attention is far from uniform
            torch.nn.init.normal_(parameter, std=0.12)
    model.save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[])
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("device", ["exact", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(build_dir, tmp_path, case, device):
    import torch

    torch.set_num_threads(2)
    model = save_tiny_model(tmp_path, *CASES[case])
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in LENGTHS]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts), encoding="utf-8")
    subprocess.run([build_dir / "bin" / "nibble_logits", tmp_path, device, str(NUM_GREEDY), tmp_path / "prompts.json",
                    tmp_path / "sequences.json", tmp_path / "logits.f32"], check=True)
    sequences = json.loads((tmp_path / "sequences.json").read_text(encoding="utf-8"))
    ours = numpy.fromfile(tmp_path / "logits.f32", dtype=numpy.float32).reshape(-1, SIZES["vocab_size"])
    with torch.no_grad():
        theirs = torch.cat([model(torch.tensor([sequence])).logits[0] for sequence in sequences]).numpy()
    spread = float(theirs.std())
    # Exact mode differs by the order of f32 sums only; the fast mode rounds the KV cache to half precision and the
    # lm_head to int8.
    tolerance = {"exact": 2e-4, "cpu": 5e-2}[device] * max(1.0, spread)
    assert float(numpy.abs(ours - theirs).max()) < tolerance
