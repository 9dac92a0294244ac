"""`nibble verify` on a trained model: SmolLM2's first eight layers, healthy in every format, and with planted faults.

Every fault is planted with numpy in the bytes of a healthy file; verify must name the tensor. The statistics that find
the silent ones were tuned on the whole model (all 30 layers, RTN, GPTQ and AWQ, 2 to 8 bits).
"""

import json
import shutil
import struct
import subprocess

import numpy
import pytest

NUM_LAYERS = 8
DTYPES = {"F16": numpy.float16, "F32": numpy.float32, "I32": numpy.int32, "I64": numpy.int64, "F8_E4M3": numpy.uint8,
          "BF16": numpy.uint16}
NAMES = {numpy.dtype(dtype): name for name, dtype in DTYPES.items()}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
MLP = "model.layers.4.mlp"
DOWN = f"{MLP}.down_proj"
UP = f"{MLP}.up_proj"


class Checkpoint:
    """A folder's tensors as numpy arrays, with their safetensors dtypes, and its config."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        raw = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8:8 + length])
        self.types, self.tensors = {}, {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            self.types[name] = entry["dtype"]
            self.tensors[name] = numpy.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()

    @property
    def quantization(self):
        return self.config["quantization_config"]

    def put(self, name, array):
        self.tensors[name] = array
        self.types[name] = NAMES[array.dtype]

    def save(self, folder, num_shards=1):
        folder.mkdir()
        names = sorted(self.tensors, key=lambda name: -self.tensors[name].itemsize)  # aligned
        shards = [names[i::num_shards] for i in range(num_shards)]
        files = ["model.safetensors"] if num_shards == 1 else [
            f"model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
        for file, shard in zip(files, shards):
            header, offset = {}, 0
            for name in shard:
                array = self.tensors[name]
                header[name] = {"dtype": self.types[name], "shape": list(array.shape),
                                "data_offsets": [offset, offset + array.nbytes]}
                offset += array.nbytes
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with open(folder / file, "wb") as out:
                out.write(struct.pack("<Q", len(text)) + text)
                for name in shard:
                    out.write(numpy.ascontiguousarray(self.tensors[name]).tobytes())
        if num_shards > 1:
            weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        (folder / "config.json").write_text(json.dumps(self.config))
        return folder


@pytest.fixture(scope="module")
def verify(nibble):
    """Runs `nibble verify --json`: {tensor: what is said of it}. Eight layers cannot read: by default no text."""
    def run(folder, *flags):
        command = [nibble, "verify", folder, "--json", *(flags or ["--no-forward"])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode in (0, 3), done.stderr
        findings = json.loads(done.stdout)["findings"]
        assert (done.returncode == 3) == bool(findings)
        problems = {}
        for finding in findings:
            problems[finding["tensor"]] = problems.get(finding["tensor"], "") + finding["problem"] + "\n"
        return problems
    return run


def first_layers(smollm2):
    """SmolLM2 cut to its first layers."""
    checkpoint = Checkpoint(smollm2)
    for name in list(checkpoint.tensors):
        if name.startswith("model.layers.") and int(name.split(".")[2]) >= NUM_LAYERS:
            del checkpoint.tensors[name]
    checkpoint.config["num_hidden_layers"] = NUM_LAYERS
    return checkpoint


@pytest.fixture(scope="module")
def float_model(smollm2, tmp_path_factory):
    """The first layers, with the first tokens only: most of the file is the embedding."""
    checkpoint = first_layers(smollm2)
    embedding = checkpoint.tensors["model.embed_tokens.weight"]
    checkpoint.put("model.embed_tokens.weight", embedding[:512].copy())
    checkpoint.config["vocab_size"] = 512
    return checkpoint.save(tmp_path_factory.mktemp("verify") / "float")


@pytest.fixture(scope="module")
def calibrated_model(smollm2, tmp_path_factory):
    """The first layers with every token, for methods that read text."""
    folder = first_layers(smollm2).save(tmp_path_factory.mktemp("verify") / "whole")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2 / name, folder)
    return folder


@pytest.fixture(scope="module")
def quantized(nibble, float_model, calibrated_model, tmp_path_factory):
    """quantized(flags…): the folder that nibble quantizes to with these flags, made once."""
    folders = {}

    def quantize(*flags):
        if flags not in folders:
            source = calibrated_model if "--calibration" in flags else float_model
            folders[flags] = tmp_path_factory.mktemp("quantized") / "model"
            subprocess.run([nibble, "quantize", source, "--output", folders[flags], *flags], check=True,
                           capture_output=True, timeout=300)
        return folders[flags]
    return quantize


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(f"The {i}th lecture was about rivers, and how they find the sea in {i * 7} days; after "
                              f"{i + 3} questions everyone went home through the rain." for i in range(400)))
    return path


RTN = ("--method", "rtn", "--group-size", "64")
RTN_ASYM = (*RTN, "--asym")
AWQ_FORMAT = (*RTN_ASYM, "--format", "autoawq")


@pytest.mark.parametrize("flags", [
    RTN, RTN_ASYM, AWQ_FORMAT, (*RTN, "--bits", "3"), (*RTN_ASYM, "--bits", "3"), (*RTN, "--bits", "2"),
    (*RTN_ASYM, "--bits", "2"), (*RTN, "--bits", "8"), (*RTN_ASYM, "--bits", "8"),
    ("--method", "rtn", "--group-size", "-1"), ("--method", "rtn", "--group-size", "-1", "--bits", "8", "--asym"),
    (*RTN, "--format", "compressed-tensors"),
    (*RTN_ASYM, "--format", "compressed-tensors"), ("--method", "fp8"),
    ("--method", "fp8", "--format", "compressed-tensors"),
], ids=" ".join)
def test_healthy_files_raise_no_alarm(verify, quantized, flags):
    assert verify(quantized(*flags)) == {}


@pytest.mark.parametrize("flags", [
    ("--method", "gptq", "--group-size", "64"), ("--method", "gptq", "--group-size", "64", "--desc_act", "true"),
    ("--method", "gptq", "--group-size", "64", "--bits", "3", "--asym"), ("--method", "awq", "--group-size", "64"),
    ("--method", "gptq", "--group-size", "64", "--guided"), ("--method", "squeezellm", "--bits", "4"),
], ids=" ".join)
def test_healthy_calibrated_files_raise_no_alarm(verify, quantized, text, flags):
    assert verify(quantized(*flags, "--calibration", str(text), "--samples", "4", "--seq-len", "128")) == {}


def test_healthy_float_and_gguf_files_raise_no_alarm(verify, float_model, smollm2_gguf):
    assert verify(float_model) == {}
    assert verify(smollm2_gguf) == {}


def add_to_nibbles(words, difference):
    """Every 4-bit field of the words plus `difference`, modulo 16."""
    fields = numpy.stack([(words.view(numpy.uint32) >> (4 * i)) & 15 for i in range(8)])
    fields = (fields + difference) & 15
    return sum(fields[i].astype(numpy.uint32) << (4 * i) for i in range(8)).view(numpy.int32)


def reorder_nibbles(words, order):
    """Nibble i of the new words is nibble order[i] of the old."""
    words = words.view(numpy.uint32)
    return sum(((words >> (4 * order[i])) & 15).astype(numpy.uint32) << (4 * i) for i in range(8)).view(numpy.int32)


def off_by_one(checkpoint):
    checkpoint.put(f"{DOWN}.qzeros", add_to_nibbles(checkpoint.tensors[f"{DOWN}.qzeros"], 15))


def v2_as_v1(checkpoint):
    checkpoint.quantization["checkpoint_format"] = "gptq"


def v1_as_v2(checkpoint):
    checkpoint.quantization["checkpoint_format"] = "gptq_v2"


INVERSE = [AWQ_ORDER.index(i) for i in range(8)]  # nibble of column i


def plain_order_in_awq(checkpoint):
    for name in checkpoint.tensors:  # nibble i must hold column i: that is where AWQ has column i
        if name.endswith((".qweight", ".qzeros")):
            checkpoint.put(name, reorder_nibbles(checkpoint.tensors[name], INVERSE))


def plain_order_in_one(checkpoint):
    for name in (f"{UP}.qweight", f"{UP}.qzeros"):
        checkpoint.put(name, reorder_nibbles(checkpoint.tensors[name], INVERSE))


def plain_order_in_zeros(checkpoint):
    checkpoint.put(f"{DOWN}.qzeros", reorder_nibbles(checkpoint.tensors[f"{DOWN}.qzeros"], INVERSE))


def awq_order_in_gptq(checkpoint):
    checkpoint.put(f"{DOWN}.qweight", reorder_nibbles(checkpoint.tensors[f"{DOWN}.qweight"], AWQ_ORDER))


def awq_order_in_all(checkpoint):
    for name in checkpoint.tensors:
        if name.endswith(".qweight"):
            checkpoint.put(name, reorder_nibbles(checkpoint.tensors[name], AWQ_ORDER))


QUERY, KEY = (f"model.layers.4.self_attn.{name}_proj" for name in "qk")


def awq_order_in_query_and_key(checkpoint):
    for module in (QUERY, KEY):
        checkpoint.put(f"{module}.qweight", reorder_nibbles(checkpoint.tensors[f"{module}.qweight"], AWQ_ORDER))


def shuffled_g_idx(checkpoint):
    numpy.random.default_rng(1).shuffle(checkpoint.tensors[f"{DOWN}.g_idx"])


def without_g_idx(checkpoint):
    for name in [name for name in checkpoint.tensors if name.endswith(".g_idx")]:
        del checkpoint.tensors[name]


def trivial_g_idx(checkpoint):
    checkpoint.tensors[f"{DOWN}.g_idx"].sort()


def negated_desc_act(checkpoint):
    checkpoint.quantization["desc_act"] = False


def scaled(name, factor):
    def plant(checkpoint):
        checkpoint.put(name, (checkpoint.tensors[name].astype(numpy.float32) * factor).astype(numpy.float16))
    return plant


def value(name, index, number):
    def plant(checkpoint):
        checkpoint.tensors[name][index] = number
    return plant


def config(key, setting):
    def plant(checkpoint):
        checkpoint.quantization[key] = setting
    return plant


def without(name):
    def plant(checkpoint):
        del checkpoint.tensors[name]
    return plant


DESC_ACT = ("--method", "gptq", "--group-size", "64", "--desc_act", "true")
DESC_ACT_2, DESC_ACT_3 = ((*DESC_ACT, "--asym", "--bits", bits) for bits in "23")
NORM = "model.layers.3.input_layernorm.weight"


@pytest.mark.parametrize("flags, plant, where, problem", [
    pytest.param(RTN_ASYM, off_by_one, f"{DOWN}.qzeros", "off by one", id="zeros-off-by-one"),
    pytest.param(RTN_ASYM, v2_as_v1, f"{UP}.qzeros", "off by one", id="v2-as-v1"),
    pytest.param(RTN, v1_as_v2, f"{UP}.qzeros", "off by one", id="v1-as-v2"),
    pytest.param((*RTN, "--bits", "8"), v1_as_v2, f"{UP}.qzeros", "off by one", id="v1-as-v2-8-bit"),
    pytest.param(AWQ_FORMAT, plain_order_in_awq, f"{UP}.qweight", "plain (GPTQ's) order", id="plain-order-in-awq"),
    pytest.param(AWQ_FORMAT, plain_order_in_one, f"{UP}.qweight", "plain (GPTQ's) order", id="plain-order-in-one"),
    pytest.param(AWQ_FORMAT, plain_order_in_zeros, f"{DOWN}.qzeros", "another order", id="plain-order-in-zeros"),
    pytest.param(RTN, awq_order_in_gptq, f"{DOWN}.qweight", "AWQ's order", id="awq-order-in-gptq"),
    pytest.param(RTN, awq_order_in_all, f"{UP}.qweight", "AWQ's order", id="awq-order-in-all"),
    pytest.param(RTN, awq_order_in_query_and_key, f"{QUERY}.qweight", "AWQ's order", id="awq-order-in-q-and-k"),
    pytest.param(RTN, awq_order_in_query_and_key, f"{KEY}.qweight", "AWQ's order", id="awq-order-in-k-and-q"),
    pytest.param(DESC_ACT_2, shuffled_g_idx, f"{DOWN}.g_idx", "its groups are not those", id="shuffled-g_idx-2-bit"),
    pytest.param(DESC_ACT_3, shuffled_g_idx, f"{DOWN}.g_idx", "its groups are not those", id="shuffled-g_idx-3-bit"),
    pytest.param(DESC_ACT, shuffled_g_idx, f"{DOWN}.g_idx", "its groups are not those", id="shuffled-g_idx"),
    pytest.param(DESC_ACT, trivial_g_idx, f"{DOWN}.g_idx", "its groups are not those", id="sorted-g_idx"),
    pytest.param(DESC_ACT, without_g_idx, DOWN, "g_idx is missing", id="desc_act-without-g_idx"),
    pytest.param(DESC_ACT, negated_desc_act, f"{DOWN}.g_idx", "desc_act false", id="wrong-desc_act"),
    pytest.param(RTN, scaled(f"{DOWN}.scales", 2), f"{DOWN}.scales", "1.97 times as large", id="doubled-scales"),
    pytest.param(RTN, scaled("model.layers.3.self_attn.q_proj.scales", 2), "model.layers.3.self_attn.q_proj.scales",
                 "2.43 times as large", id="doubled-scales-of-q"),
    pytest.param(RTN, scaled(f"{UP}.scales", 0.5), f"{UP}.scales", "0.49 times", id="halved-scales"),
    pytest.param(RTN, value(f"{DOWN}.scales", (2, 17), numpy.nan), f"{DOWN}.scales", "[2, 17] is NaN", id="nan-scale"),
    pytest.param(RTN, value(f"{DOWN}.scales", (2, 17), numpy.inf), f"{DOWN}.scales", "[2, 17] is infinite",
                 id="infinite-scale"),
    pytest.param(RTN, value(f"{DOWN}.scales", (2, 17), 0), f"{DOWN}.scales", "[2, 17] is a scale of zero",
                 id="zero-scale"),
    pytest.param(RTN, value(f"{DOWN}.scales", (2, 17), 1e-7), f"{DOWN}.scales", "denormal", id="denormal-scale"),
    pytest.param(RTN, value(f"{DOWN}.scales", (2, 17), 60000), f"{DOWN}.scales", "overflows f16",
                 id="fp16-overflow-in-down_proj"),
    pytest.param(RTN, config("bits", 8), DOWN, "expected I32 [384, 576], found I32 [192, 576]", id="wrong-bits"),
    pytest.param(RTN, config("group_size", 128), DOWN, "expected", id="wrong-group-size"),
    pytest.param(RTN, value(f"{DOWN}.g_idx", 5, 99), DOWN, "g_idx: entry 99", id="g_idx-out-of-range"),
    pytest.param(RTN, without(NORM), NORM, "is missing", id="missing-norm"),
    pytest.param(RTN, without(f"{DOWN}.scales"), DOWN, "scales", id="missing-scales"),
    pytest.param(RTN, value("model.embed_tokens.weight", (7, 3), numpy.nan), "model.embed_tokens.weight",
                 "[7, 3] is NaN", id="nan-embedding"),
    pytest.param(("--method", "fp8"), value(f"{DOWN}.weight", (1, 2), 0x7f), f"{DOWN}.weight", "[1, 2] is NaN",
                 id="fp8-nan-code"),
    pytest.param(("--method", "fp8"), value(f"{DOWN}.weight_scale", 3, 0), f"{DOWN}.weight_scale", "zero",
                 id="fp8-zero-scale"),
])
def test_a_planted_fault_is_named_with_its_tensor(verify, quantized, text, tmp_path, flags, plant, where, problem):
    if "--desc_act" in flags:
        flags = (*flags, "--calibration", str(text), "--samples", "4", "--seq-len", "128")
    checkpoint = Checkpoint(quantized(*flags))
    plant(checkpoint)
    findings = verify(checkpoint.save(tmp_path / "planted"))
    assert where in findings, findings
    assert problem in findings[where]


# The outermost layers have no neighbours on both sides: a short text goes through the whole model.

@pytest.fixture(scope="module")
def whole_model(nibble, smollm2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "whole-4-bit"
    subprocess.run([nibble, "quantize", smollm2, "--output", folder, *RTN], check=True, capture_output=True,
                   timeout=300)
    return folder


def test_a_text_is_read_and_raises_no_alarm(nibble, whole_model):
    done = subprocess.run([nibble, "verify", whole_model, "--json"], capture_output=True, text=True, timeout=240)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["findings"] == []
    assert report["forward_pass"]["tokens"] > 200 and 2 < report["forward_pass"]["loss"] < 3


def rows_in_metas_order(checkpoint):
    for name in list(checkpoint.tensors):
        if not name.endswith(("q_proj.qweight", "k_proj.qweight", "q_proj.scales", "k_proj.scales")):
            continue
        stored = checkpoint.tensors[name]  # [in / 8 or groups, out]; the pairs of a head of 64 are 32 rows apart
        heads = stored.reshape(len(stored), -1, 2, 32)
        checkpoint.put(name, heads.swapaxes(2, 3).reshape(stored.shape).copy())


def layer(name):
    return f"model.layers.{name}_proj.scales"


def overflowing(checkpoint):
    name = layer("29.mlp.down")
    checkpoint.tensors[name][:, 7] *= numpy.float16(3000)


@pytest.mark.parametrize("plant, where, problem", [
    pytest.param(scaled(layer("0.mlp.gate"), 2), layer("0.mlp.gate"), "twice as large", id="doubled-in-the-first-layer"),
    pytest.param(scaled(layer("0.self_attn.v"), 2), layer("0.self_attn.v") + " or " + layer("0.self_attn.o"),
                 "twice as large", id="doubled-v-in-the-first-layer"),
    pytest.param(scaled(layer("1.mlp.up"), 2), layer("1.mlp.up"), "twice as large", id="doubled-in-the-second-layer"),
    pytest.param(scaled(layer("28.self_attn.k"), 2), layer("28.self_attn.k"), "twice as large",
                 id="doubled-k-in-the-last-but-one-layer"),
    pytest.param(scaled(layer("29.mlp.down"), 0.5), layer("29.mlp.down"), "half as large",
                 id="halved-in-the-last-layer"),
    pytest.param(rows_in_metas_order, "model.layers.0.self_attn.q_proj.qweight", "rotary pairs",
                 id="rotary-pairs-in-metas-order"),
    pytest.param(overflowing, layer("29.mlp.down"), "overflows f16", id="outputs-that-overflow-f16"),
])
def test_faults_that_a_text_shows_are_named(verify, whole_model, tmp_path, plant, where, problem):
    checkpoint = Checkpoint(whole_model)
    plant(checkpoint)
    folder = checkpoint.save(tmp_path / "planted")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole_model / name, folder)
    findings = verify(folder, "--threads", "2")
    assert where in findings, findings
    assert problem in findings[where]
    assert len(findings) == 1 or problem == "overflows f16"


def test_a_model_without_a_tokenizer_says_that_no_text_was_read(nibble, quantized):
    done = subprocess.run([nibble, "verify", quantized(*RTN)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "no text read (there is no tokenizer.json)" in done.stdout


def test_lost_shards_are_named_with_their_tensors(verify, quantized, tmp_path):
    checkpoint = Checkpoint(quantized(*RTN))
    folder = checkpoint.save(tmp_path / "shards", num_shards=3)
    assert verify(folder) == {}
    shard = folder / "model-00002-of-00003.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    lost = sorted(name for name, file in index["weight_map"].items() if file == shard.name)
    whole = shard.read_bytes()

    shard.write_bytes(whole[:len(whole) // 2])
    (name, problem), = verify(folder).items()
    assert name == f"{lost[0]} and {len(lost) - 1} more" and shard.name in problem and "outside" in problem
    shard.unlink()
    (name, problem), = verify(folder).items()
    assert name == f"{lost[0]} and {len(lost) - 1} more" and shard.name in problem
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git-lfs" in "".join(verify(folder).values())

    shard.write_bytes(whole)
    index["weight_map"][lost[0]] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "should hold it, but does not" in verify(folder)[lost[0]]


def write_squeezellm(checkpoint, folder, sparse):
    """The float model as 4-bit tables of quantiles, a table a row, as SqueezeLLM lays them out."""
    random = numpy.random.default_rng(5)
    made = Checkpoint.__new__(Checkpoint)
    made.config = dict(checkpoint.config, quantization_config={
        "quant_method": "squeezellm", "wbits": 4, "bits": 4, "include_sparse": sparse})
    made.types, made.tensors = dict(checkpoint.types), dict(checkpoint.tensors)
    for name in list(checkpoint.tensors):
        if "_proj.weight" not in name:
            continue
        module = name.removesuffix(".weight")
        weight = made.tensors.pop(name).astype(numpy.float32)
        table = numpy.quantile(weight, (numpy.arange(16) + 0.5) / 16, axis=1).T.astype(numpy.float32)
        middles = (table[:, 1:] + table[:, :-1]) / 2
        codes = numpy.stack([numpy.searchsorted(m, row) for m, row in zip(middles, weight)]).astype(numpy.uint32)
        order = random.permutation(16)  # tables come in any order
        table, codes = table[:, order], numpy.argsort(order)[codes].astype(numpy.uint32)
        fields = codes.reshape(len(codes), -1, 8)
        made.put(f"{module}.qweight", (fields << (4 * numpy.arange(8, dtype=numpy.uint32))).sum(
            axis=2, dtype=numpy.uint32).T.copy().view(numpy.int32))
        made.put(f"{module}.lookup_table", table)
        if sparse:
            made.put(f"{module}.rows", numpy.arange(len(codes) + 1, dtype=numpy.int32))
            made.put(f"{module}.cols", random.integers(0, weight.shape[1], len(codes)).astype(numpy.int32))
            made.put(f"{module}.vals", random.normal(0, 0.01, len(codes)).astype(numpy.float32))
    return made.save(folder)


@pytest.fixture(scope="module")
def squeezellm(float_model, tmp_path_factory):
    return write_squeezellm(Checkpoint(float_model), tmp_path_factory.mktemp("squeezellm") / "model", sparse=True)


def other_layers_row(checkpoint):
    checkpoint.tensors[f"{DOWN}.lookup_table"][9] = checkpoint.tensors["model.layers.2.mlp.down_proj.lookup_table"][9]


def unsorted_row(checkpoint):
    checkpoint.tensors[f"{DOWN}.lookup_table"][9] = abs(checkpoint.tensors[f"{DOWN}.lookup_table"][9])


@pytest.mark.parametrize("plant, where, problem", [
    pytest.param(None, None, None, id="healthy"),
    pytest.param(other_layers_row, f"{DOWN}.lookup_table",
                 "row 9 is row 9 of model.layers.2.mlp.down_proj.lookup_table", id="row-of-another-layers-table"),
    pytest.param(unsorted_row, f"{DOWN}.lookup_table", "row 9 does not fit its codes", id="row-that-does-not-fit"),
    pytest.param(value(f"{DOWN}.lookup_table", (3, 4), numpy.nan), f"{DOWN}.lookup_table", "[3, 4] is NaN", id="nan"),
    pytest.param(value(f"{DOWN}.cols", 7, 1536), DOWN, "cols: 1536 outside", id="column-out-of-range"),
    pytest.param(value(f"{DOWN}.cols", 7, -1), DOWN, "cols: -1 outside", id="negative-column"),
    pytest.param(value(f"{DOWN}.rows", 7, 99), DOWN, "not monotone", id="rows-not-monotone"),
    pytest.param(value(f"{DOWN}.vals", 7, numpy.inf), f"{DOWN}.vals", "[7] is infinite", id="infinite-outlier"),
])
def test_faults_of_codebooks_are_named(verify, squeezellm, tmp_path, plant, where, problem):
    checkpoint = Checkpoint(squeezellm)
    if plant is None:
        assert verify(squeezellm) == {}
        return
    plant(checkpoint)
    findings = verify(checkpoint.save(tmp_path / "planted"))
    assert where in findings, findings
    assert problem in findings[where]


def test_what_cannot_be_judged_is_an_error(nibble, tmp_path):
    for path, part in [(tmp_path / "absent", "no such folder"), (tmp_path, "no config.json")]:
        done = subprocess.run([nibble, "verify", path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and part in done.stderr, done
