"""Tokenizers and texts for test_tokenizer.py: SmolLM2's own, and small ones trained here in the form of Llama 3, Qwen 2.5
and Llama 2, all as the text of a tokenizer.json."""

import json
import pathlib
import random
import sys
import unicodedata

import gguf
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The patterns of Meta-Llama-3-8B's and Qwen2.5-7B's tokenizer.json.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

# Article 1 of the Universal Declaration of Human Rights and the like, in ten scripts and more.
SCRIPTS = {
    "latin": "All human beings are born free and equal in dignity and rights. Tous les êtres humains naissent libres "
    "et égaux en dignité et en droits. Wszyscy ludzie rodzą się wolni i równi, İstanbul'da ığdır, Đường phố Huế.",
    "greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. ᾳ ῷ ΐ",
    "cyrillic": "Все люди рождаются свободными и равными в своём достоинстве и правах. Ґудзик, їжак, Ѣ.",
    "arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. ١٢٣٤٥ ۴۵۶",
    "hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. בְּרֵאשִׁית",
    "devanagari": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। १२३ क़ख़ग़",
    "bengali": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে। ড়ঢ়য় ১২৩",
    "tamil": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; கொ கோ கௌ",
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ๑๒๓ น้ำ",
    "georgian": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით. ᲐᲑᲒ",
    "ethiopic": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው። ፩፪፫",
    "hangul": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 한글 ㄱㄴㄷ",
    "japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。ガギグ ｶﾞｷﾞ 12３",
    "chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。〇一二三 豈更車",
    "emoji": "👋🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇦🇯🇵 1️⃣ ☕️ 🫠 🧑🏿‍🚀 ❤️‍🔥 ™️ ㊙️",
    "marks": "e\u0301 a\u0328\u0301 s\u0323\u0307 \u1e9b\u0323 q\u0307\u0323 A\u030a \u212b Z\u0351\u036b\u0343\u036a\u0302\u034d"
    "\u0348 \u0344 \u0f71\u0f72\u0f74 \u1100\u1161\u11a8 \ufb01 \u2126 \u0958",
    "spaces": "  two\t\ttabs \n\n newline\r\n\r\nwindows  \u00a0nbsp\u2003em\u3000ideographic\u180emongolian\u200bzero\x85next"
    "\u2028line\x0bvt\x0cff   \n   ",
}

PROSE = """ = Robert Boulter = 

 Robert Boulter is an English film , television and theatre actor . He had a guest @-@ starring role on the television
 series The Bill in 2000 . This was followed by a starring role in the play Herons written by Simon Stephens , which was
 performed in 2001 at the Royal Court Theatre . In 2006 he said : " I'LL be there ; they've won't didn't we'd it's O'Brien's
 rock 'n' roll . " The film cost £ 4 @.@ 5 million ( about $ 7 @,@ 123 @,@ 456 ) and ran for 1234567 minutes — nearly 100 % .
"""


def assigned_code_points():
    """All code points that Unicode 14 assigns, without surrogates: what PCRE2 10.42 and Oniguruma both know."""
    assert unicodedata.unidata_version >= "14.0.0"
    newest = unicodedata.unidata_version
    if newest != "14.0.0":  # a newer Python: leave out what it cannot tell apart
        return [c for c in range(0x3000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    return [c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]


def random_strings(count):
    code_points = assigned_code_points()
    in_plane = [c for c in code_points if c < 0x3000]
    generator = random.Random(4)
    return [
        "".join(
            chr(generator.choice(code_points if generator.random() < 0.5 else in_plane))
            for _ in range(generator.randint(1, 24))
        )
        for _ in range(count)
    ]


def random_ascii(count):
    """Strings over few characters, which meet the corners of the patterns more often than text does."""
    alphabet = "abSs'LlTtRrEeVvMmDd019  \t\r\n\n.,!-_<|>é中\u0301"
    generator = random.Random(5)
    return ["".join(generator.choices(alphabet, k=generator.randint(1, 40))) for _ in range(count)]


def source_code():
    """This repository's own."""
    files = sorted(p for s in ("*.h", "*.cpp", "*.py") for p in (ROOT / "src").rglob(s))
    return [p.read_text(encoding="utf-8") for p in files[:60]] + [pathlib.Path(__file__).read_text(encoding="utf-8")]


def special_texts():
    return [
        "",
        " ",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|><|im_start|",
        "<s>[INST] Hello </s> there [/INST]<unk>",
        "<|begin_of_text|>a<|end_of_text|>",
        "  <s>  x  </s>  ",
        "x<s>y <s> ▁ z▁▁",
    ]


def all_texts():
    return (
        list(SCRIPTS.values())
        + ["\n".join(SCRIPTS.values()), PROSE]
        + source_code()
        + special_texts()
        + ["a" * 3000, " " * 3000, "ab" * 1000, "é" * 500, "0" * 777, "\n" * 300, "中" * 400, "a" * 63, "a" * 64, "a" * 65]
        + [unicodedata.normalize(form, "\n".join(SCRIPTS.values())) for form in ("NFD", "NFKD", "NFKC")]
        + random_strings(10_000)
        + random_ascii(5_000)
    )


def smollm2(path):
    """formats.md §8: the GGUF's vocabulary and merges under the pre-tokenizer `smollm`."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokenizer = tokenizers.Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL])
    return tokenizer.to_str()


def _training_texts():
    return source_code() + list(SCRIPTS.values()) * 4 + [PROSE] * 4


def _byte_level(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _train(tokenizer, special_tokens=(), alphabet=()):
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=list(special_tokens), initial_alphabet=list(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_training_texts(), trainer)
    return tokenizer


def llama3():
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = _byte_level(LLAMA3_PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, alphabet=pre_tokenizers.ByteLevel.alphabet())
    # A token that no merges reach shows that ignore_merges takes a piece whole.
    description = json.loads(tokenizer.to_str())
    vocab = description["model"]["vocab"]
    vocab["Ġdignity"] = vocab.get("Ġdignity", len(vocab))
    vocab["xyzzy"] = len(vocab)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                special_tokens=[("<|begin_of_text|>", begin)],
            ),
        ]
    )
    return tokenizer.to_str()


def qwen2():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _byte_level(QWEN2_PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _train(tokenizer, alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([tokenizers.AddedToken("<tool_call>", normalized=False, special=False)])
    return tokenizer.to_str()


def _sentencepiece(description):
    """A trained BPE as a converted SentencePiece model: byte tokens behind <unk>, <s>, </s>, byte_fallback, fuse_unk."""
    model = description["model"]
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trained = sorted(model["vocab"], key=model["vocab"].get)
    names += [token for token in trained if token not in names]
    model.update(
        vocab={name: i for i, name in enumerate(names)}, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    description["added_tokens"] = [
        {
            "id": i,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, content in enumerate(["<unk>", "<s>", "</s>"])
    ]
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    description["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return description


def _trained_on_metaspace():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=2500, limit_alphabet=300, show_progress=False)
    tokenizer.train_from_iterator(_training_texts(), trainer)
    return _sentencepiece(json.loads(tokenizer.to_str()))


def llama2_legacy():
    """As TheBloke's Llama-2 checkpoints: spaces are replaced by normalizers, nothing is split."""
    description = _trained_on_metaspace()
    description["pre_tokenizer"] = None
    description["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    return json.dumps(description)


def llama2_metaspace():
    """As later conversions: the Metaspace pre-tokenizer, only in front of the whole text."""
    description = _trained_on_metaspace()
    description["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    return json.dumps(description)
