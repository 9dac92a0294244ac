"""GGUF: values against gguf-py, the imported folder against the file and (--oracle) against transformers."""

import json
import subprocess

import gguf
import numpy
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]

TEXTS = [
    "Hello, world! It's 2024 and we've 1234567 apples.",
    "Die Straße ist naß; l'été à Zürich — «où»?",
    "東京は日本の首都です。 Москва, Αθήνα, القاهرة, नई दिल्ली",
    "🙂👩‍👩‍👧 e\u0301 \u200b\t\n\n  def f(x):\n    return x  # done   ",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
]


@pytest.fixture(scope="session")
def tool(build_dir):
    path = build_dir / "bin" / "nibble_checkpoint_tool"
    if not path.is_file():
        pytest.fail(f"{path} is not built: run scripts/build")
    return path


@pytest.mark.parametrize("name", TYPES)
def test_blocks_dequantize_as_gguf_py_does_bit_for_bit(tool, tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = numpy.random.default_rng(7).integers(0, 256, (4000, block_bytes), dtype=numpy.uint8)
    blocks.tofile(tmp_path / "blocks")
    subprocess.run([tool, "dequantize-gguf", str(int(kind)), tmp_path / "blocks", tmp_path / "values"], check=True)
    ours = numpy.fromfile(tmp_path / "values", dtype=numpy.float32)
    with numpy.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(blocks, kind).reshape(-1)
    same = (ours.view(numpy.uint32) == theirs.view(numpy.uint32)) | (numpy.isnan(ours) & numpy.isnan(theirs))
    assert same.all(), f"{(~same).sum()} of {same.size} differ"
    assert numpy.isfinite(ours).mean() > 0.9


def hugging_face_rows(rows, heads):
    """llama.cpp stores each head's rows as (head_dim / 2, 2); Hugging Face as (2, head_dim / 2)."""
    shape = rows.shape
    return rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def test_imported_weights_are_the_files_values_rounded_once_to_f16(smollm2, smollm2_gguf):
    imported = load_file(smollm2 / "model.safetensors")
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    seen = set()
    for tensor in gguf.GGUFReader(smollm2_gguf).tensors:
        parts = tensor.name.split(".")
        stem = parts[-2]
        module = names.get(stem, stem.replace("attn_", "self_attn.").replace("ffn_", "mlp.") + "_proj")
        name = (f"model.layers.{parts[1]}." if parts[0] == "blk" else "") + module + ".weight"
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if stem in ("attn_q", "attn_k"):
            values = hugging_face_rows(values, {"attn_q": 9, "attn_k": 3}[stem])
        numpy.testing.assert_array_equal(imported[name], values.astype(numpy.float16), err_msg=name)
        seen.add(name)
    assert seen == set(imported)


def test_linears_of_the_file_itself_are_exact(tool, smollm2_gguf, tmp_path):
    reader = gguf.GGUFReader(smollm2_gguf)
    tensor = next(t for t in reader.tensors if t.name == "token_embd.weight")
    (tmp_path / "modules.json").write_text(json.dumps({"model.embed_tokens": tensor.shape.tolist()[::-1]}))
    subprocess.run([tool, "dump", smollm2_gguf, tmp_path / "modules.json", tmp_path], check=True)
    ours = numpy.fromfile(tmp_path / "model.embed_tokens.f32", dtype=numpy.float32)
    numpy.testing.assert_array_equal(ours, gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1))


def test_config_has_the_files_hyperparameters(smollm2):
    config = json.loads((smollm2 / "config.json").read_text())
    expected = {"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
                "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
                "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 100000.0,
                "tie_word_embeddings": True, "torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2}
    assert {key: config[key] for key in expected} == expected


def test_tokenizers_reads_the_made_tokenizer_and_text_comes_back(smollm2):
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 49152
    assert tokenizer.encode("<|im_start|>user").ids[0] == 1
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.torch
def test_transformers_makes_the_same_tokenizer_from_the_gguf_file(smollm2, smollm2_gguf):
    transformers = pytest.importorskip("transformers")
    ours = transformers.AutoTokenizer.from_pretrained(smollm2)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    for text in TEXTS:
        assert ours(text).input_ids == theirs(text).input_ids, text
    conversation = [{"role": "user", "content": "Hi"}]
    assert ours.apply_chat_template(conversation, tokenize=False) == theirs.apply_chat_template(
        conversation, tokenize=False)
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")


@pytest.mark.torch
def test_transformers_loads_the_folder_with_the_files_config(smollm2, smollm2_gguf):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2, dtype=torch.float16, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    config = transformers.AutoConfig.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    for key in ("rope_parameters", "max_position_embeddings", "tie_word_embeddings", "head_dim", "bos_token_id",
                "num_key_value_heads", "vocab_size"):
        assert getattr(model.config, key) == getattr(config, key), key
    assert model.config.rms_norm_eps == pytest.approx(config.rms_norm_eps, rel=1e-6)
