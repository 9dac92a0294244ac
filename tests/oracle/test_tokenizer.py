"""Ids and text against Hugging Face tokenizers, for the same tokenizer.json."""

import json
import subprocess

import pytest
import tokenizers

import tokenizer_samples as samples


class NibbleTokenizer:
    """build/…/bin/nibble_tokenize over one tokenizer.json."""

    def __init__(self, build_dir, path):
        self.program = build_dir / "bin" / "nibble_tokenize"
        self.path = path
        if not self.program.is_file():
            pytest.fail(f"{self.program} is not built: run scripts/build")

    def ask(self, requests):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run(
            [self.program, self.path], input=lines.encode(), stdout=subprocess.PIPE, check=False, timeout=300
        )
        return [json.loads(line) for line in done.stdout.split(b"\n")[:-1]]

    def encode(self, texts, add_special=True):
        return self.ask([{"text": text, "add_special": add_special} for text in texts])


@pytest.fixture(scope="session")
def smollm2_json(smollm2_gguf):
    return samples.smollm2(smollm2_gguf)


@pytest.fixture(scope="session", params=["smollm2", "llama3", "qwen2", "llama2_legacy", "llama2_metaspace"])
def pair(request, build_dir, tmp_path_factory):
    """(theirs, ours) of one tokenizer.json."""
    if request.param == "smollm2":
        text = request.getfixturevalue("smollm2_json")
    else:
        text = getattr(samples, request.param)()
    return make_pair(build_dir, tmp_path_factory.mktemp("tokenizer"), text)


def make_pair(build_dir, folder, text):
    path = folder / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    return tokenizers.Tokenizer.from_str(text), NibbleTokenizer(build_dir, path)


def assert_same_ids(theirs, ours, texts, add_special=True):
    expected = theirs.encode_batch(texts, add_special_tokens=add_special)
    for text, want, got in zip(texts, expected, ours.encode(texts, add_special), strict=True):
        assert got.get("ids") == want.ids, (text[:200], want.tokens[:50], got)


@pytest.fixture(scope="session")
def texts():
    return samples.all_texts()


def test_gives_the_ids_of_tokenizers(pair, texts):
    assert_same_ids(*pair, texts)


def test_leaves_out_the_special_tokens_around_the_text(pair):
    assert_same_ids(*pair, samples.special_texts() + [samples.PROSE], add_special=False)


def test_decodes_and_streams_as_tokenizers(pair, texts):
    theirs, ours = pair
    for text, answer in zip(texts, ours.encode(texts), strict=True):
        assert answer["text"] == theirs.decode(answer["ids"]), text[:200]
        assert answer["stream"] == answer["text"], text[:200]


def test_decodes_special_tokens_where_asked(pair):
    theirs, ours = pair
    encoded = [theirs.encode(text).ids for text in samples.special_texts()]
    answers = ours.ask([{"ids": ids, "skip_special": False} for ids in encoded])
    assert [answer["text"] for answer in answers] == [theirs.decode(ids, skip_special_tokens=False) for ids in encoded]
    assert [answer["stream"] for answer in answers] == [answer["text"] for answer in answers]


def component_variants(description):
    """The same vocabulary under other components, by name."""

    def variant(**fields):
        return json.dumps({**description, **fields})

    def split(pattern, behavior, invert=False):
        return {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        }

    def then_byte_level(*stages):
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {"type": "Sequence", "pretokenizers": [*stages, byte_level]}

    behaviors = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    for behavior in behaviors:
        yield f"split-{behavior}", variant(pre_tokenizer=split({"String": "--"}, behavior))
        yield f"regex-{behavior}", variant(pre_tokenizer=split({"Regex": r"[\s\-]"}, behavior))
        yield f"invert-{behavior}", variant(pre_tokenizer=split({"Regex": r"\w+|[^\w\s]+"}, behavior, invert=True))
        yield f"empty-{behavior}", variant(pre_tokenizer=split({"Regex": r"a*"}, behavior))
        yield f"punctuation-{behavior}", variant(
            pre_tokenizer=then_byte_level({"type": "Punctuation", "behavior": behavior})
        )
    for pattern in [r"\h+", r"(?m:a.)b", r"\p{N}{,2}", r"(\p{N}{1,3}+x)+", r"^\s|\s$", r"[\S]\W", r"(?i)'S|\d"]:
        yield f"pattern {pattern}", variant(pre_tokenizer=split({"Regex": pattern}, "Isolated"))
    for individual in (True, False):
        yield f"digits-{individual}", variant(
            pre_tokenizer=then_byte_level({"type": "Digits", "individual_digits": individual})
        )
    yield "falcon", variant(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Punctuation", "behavior": "Contiguous"},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                {"type": "Digits", "individual_digits": False},
                {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
            ],
        }
    )
    yield "prefix-space", variant(
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    )
    yield "whitespace", variant(pre_tokenizer=then_byte_level({"type": "Whitespace"}))
    yield "whitespace-split", variant(pre_tokenizer=then_byte_level({"type": "WhitespaceSplit"}))
    for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
        yield f"normalizer-{form}", variant(normalizer={"type": form})
    for left, right in ((True, True), (True, False), (False, True)):
        yield f"strip-{left}-{right}", variant(
            normalizer={"type": "Strip", "strip_left": left, "strip_right": right}
        )
    yield "replace-regex", variant(
        normalizer={"type": "Replace", "pattern": {"Regex": r"\s+|e+"}, "content": " $0 "}
    )
    for name, flags in {
        "lstrip": {"lstrip": True},
        "rstrip": {"rstrip": True},
        "both": {"lstrip": True, "rstrip": True},
        "word": {"single_word": True},
        "normalized": {"normalized": True},
        "plain": {"special": False},
    }.items():
        token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}
        first = len(description["model"]["vocab"])
        contents = ["<a>", "<a><b>", "Straße", "  ", "ab"]
        added = [{"id": first + i, "content": content, **token} for i, content in enumerate(contents)]
        yield f"added-{name}", variant(added_tokens=added)
        yield f"added-{name}-lower", variant(added_tokens=added, normalizer={"type": "Lowercase"})


def test_every_component_gives_the_ids_of_tokenizers(build_dir, tmp_path):
    description = json.loads(samples.qwen2())
    description["normalizer"] = None
    texts = [*samples.SCRIPTS.values(), samples.PROSE, *samples.random_strings(300), *samples.random_ascii(1000)]
    texts += ["the-final--countdown", "--", "a--", "-- a", "x\n\n y\n", "123456 12 7", "aXbab\nab", "fooab ab abc"]
    texts += ["<a>", " <a> <a><b>x  <a>\n<b> Straße STRASSE Straßen", "a<a>b <A> a   b", "ab ab_ _ab éab abé 1ab", "  <a>  "]
    for name, text in component_variants(description):
        try:
            assert_same_ids(*make_pair(build_dir, tmp_path, text), texts)
        except AssertionError as error:
            raise AssertionError(name) from error


def test_repairs_invalid_utf8_as_python_does(build_dir, tmp_path, smollm2_json):
    """Raw bytes go in through decode: byte tokens in any order."""
    theirs, ours = make_pair(build_dir, tmp_path, smollm2_json)
    ids = [theirs.encode(c).ids for c in ("é", "中", "👋", "a")]
    cut = [
        ids[0][:1] + ids[1],
        ids[1][:1] + ids[3] + ids[2][:2],
        ids[2][1:] + ids[0],
        ids[2][:3] if len(ids[2]) > 3 else ids[2][:1],
    ]
    answers = ours.ask([{"ids": sequence, "skip_special": True} for sequence in cut])
    assert [answer["text"] for answer in answers] == [theirs.decode(sequence) for sequence in cut]
    assert [answer["stream"] for answer in answers] == [answer["text"] for answer in answers]


def test_ten_megabytes_cost_about_ten_times_one_megabyte(pair):
    """CPU time as a ratio within one process: 10 to 12 on an idle machine; 20 leaves room, quadratic work gives 100."""
    _, ours = pair
    for unit in ("a", " ", "中", "0", "\u0301\u0316", "<|im_start"):
        times = 1_000_000 // len(unit.encode())
        answers = ours.ask([{"repeat": unit, "times": n} for n in (times, times, 10 * times)])
        seconds = [answer["seconds"] for answer in answers]
        assert seconds[2] <= 20 * max(seconds[:2]), (unit, seconds)
