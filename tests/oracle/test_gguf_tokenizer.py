"""Tokenizers made from a GGUF file's vocabulary: ids and text against the programs that the vocabulary comes from."""

import io
import json
import subprocess

import gguf
import numpy
import pytest
import sentencepiece
import tokenizers

import tokenizer_samples as samples
from test_tokenizer import NibbleTokenizer

HIDDEN, INTERMEDIATE, HEADS = 64, 96, 4

TEXTS = [
    "Hello, world! It's 2024 and we've 1234567 apples.",
    "  two spaces   three    four, tab\tand\n\n\nlines \r\n",
    "Die Straße ist naß; l'été à Zürich — «où»?",
    "東京は日本の首都です。 Москва, Αθήνα, القاهرة, नई दिल्ली",
    "🙂👩‍👩‍👧 e\u0301 \u200b zero\u00a0width",
    "aaaaaaaaaaaaaaaaa bbbb abababab",
    " leading", "trailing ", " ", "x", "\u2581 itself",
    "def f(x):\n    return x  # done   ",
]


def texts():
    return TEXTS + list(samples.SCRIPTS.values()) + samples.PROSE.split(". ") + samples.source_code()[0].split("\n")[:200]


def write_gguf(path, add_vocabulary, vocab_size):
    """One layer of random weights and the vocabulary: what `nibble import` wants of a file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(vocab_size)
    add_vocabulary(writer)
    shapes = {"token_embd": [vocab_size, HIDDEN], "output_norm": [HIDDEN], "blk.0.attn_norm": [HIDDEN],
              "blk.0.ffn_norm": [HIDDEN], "blk.0.ffn_gate": [INTERMEDIATE, HIDDEN], "blk.0.ffn_up": [INTERMEDIATE, HIDDEN],
              "blk.0.ffn_down": [HIDDEN, INTERMEDIATE]}
    shapes.update({f"blk.0.attn_{name}": [HIDDEN, HIDDEN] for name in ("q", "k", "v", "output")})
    random = numpy.random.default_rng(1)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.1, shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def import_tokenizer(nibble, build_dir, folder, add_vocabulary, vocab_size):
    """(ours, tokenizers' reading of what we wrote) of the imported folder."""


    write_gguf(folder / "model.gguf", add_vocabulary, vocab_size)
    subprocess.run([nibble, "import", folder / "model.gguf", "--output", folder / "imported"], check=True)
    path = folder / "imported" / "tokenizer.json"
    return NibbleTokenizer(build_dir, path), tokenizers.Tokenizer.from_file(str(path))


# ---- SentencePiece ----


def train_sentencepiece(**options):
    model = io.BytesIO()
    corpus = [line for text in texts() for line in text.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus * 3), model_writer=model, model_type="bpe", vocab_size=1500, byte_fallback=True,
        character_coverage=0.98, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, minloglevel=2, num_threads=1, **options)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no_prefix"])
def sentence_piece(request, nibble, build_dir, tmp_path_factory):
    """(SentencePiece's processor, ours, tokenizers' reading), with and without the space in front of a text."""
    processor = train_sentencepiece(add_dummy_prefix=request.param)
    size = processor.get_piece_size()

    def kind(i):
        for is_kind, name in ((processor.is_unknown, "UNKNOWN"), (processor.is_control, "CONTROL"),
                              (processor.is_byte, "BYTE"), (processor.is_unused, "UNUSED")):
            if is_kind(i):
                return gguf.TokenType[name]
        return gguf.TokenType.NORMAL

    def add_vocabulary(writer):
        writer.add_tokenizer_model("llama")
        writer.add_token_list([processor.id_to_piece(i).encode() for i in range(size)])
        writer.add_token_scores([processor.get_score(i) for i in range(size)])
        writer.add_token_types([kind(i) for i in range(size)])
        writer.add_bos_token_id(processor.bos_id())
        writer.add_eos_token_id(processor.eos_id())
        writer.add_unk_token_id(processor.unk_id())
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(request.param)

    folder = tmp_path_factory.mktemp("sentencepiece")
    return processor, *import_tokenizer(nibble, build_dir, folder, add_vocabulary, size)


def test_a_sentencepiece_vocabulary_gives_sentencepieces_ids_and_text(sentence_piece):
    processor, ours, theirs = sentence_piece
    cases = texts()
    num_byte_tokens = 0
    for text, answer in zip(cases, ours.encode(cases), strict=True):
        expected = processor.encode(text, add_bos=True)
        assert answer["ids"] == expected, (text, [processor.id_to_piece(i) for i in expected])
        assert theirs.encode(text).ids == expected, text
        assert answer["text"] == answer["stream"] == processor.decode(expected), text
        num_byte_tokens += sum(processor.is_byte(i) for i in expected)
    assert num_byte_tokens > 50  # characters outside the vocabulary were among them


# ---- byte-level BPE ----


@pytest.mark.parametrize("pre, sample", [("llama-bpe", samples.llama3), ("qwen2", samples.qwen2)])
def test_a_byte_level_vocabulary_gives_the_ids_of_the_tokenizer_it_comes_from(nibble, build_dir, tmp_path, pre, sample):
    source = sample()
    description = json.loads(source)
    added = {token["id"]: token for token in description["added_tokens"]}
    names = {**{i: token for token, i in description["model"]["vocab"].items()},
             **{i: token["content"] for i, token in added.items()}}
    assert sorted(names) == list(range(len(names)))
    kinds = [gguf.TokenType.NORMAL if i not in added else
             gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED for i in range(len(names))]
    first_special = min(added)

    def add_vocabulary(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([names[i].encode() for i in range(len(names))])
        writer.add_token_types(kinds)
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge)
                                 for merge in description["model"]["merges"]])
        writer.add_bos_token_id(first_special)
        writer.add_eos_token_id(first_special + 1)

    ours, reread = import_tokenizer(nibble, build_dir, tmp_path, add_vocabulary, len(names))
    theirs = tokenizers.Tokenizer.from_str(source)
    specials = [token["content"] for token in added.values()]
    cases = texts() + [f"{special}hi {special}\n" for special in specials] + ["e\u0301 dignity xyzzy"]
    for text, answer in zip(cases, ours.encode(cases), strict=True):
        expected = theirs.encode(text).ids
        assert answer["ids"] == reread.encode(text).ids == expected, text
        assert answer["text"] == answer["stream"] == theirs.decode(expected), text
