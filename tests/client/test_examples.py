"""The examples in the client's README and in docs/open-inference-protocol.md run."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(90)  # some examples start a process that imports large packages

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "client" / "README.md"
BLOCKS = re.findall(r"^```python( compile-only)?\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def run_with_other_packages(example: str, *flags: str) -> str:
    """Run an example with the Python of .tools/openinference, which has pandas, tritonclient and kserve.

    Return the output of the example.
    """
    python = ROOT / ".tools/openinference/bin/python"
    assert python.exists(), "pandas, tritonclient and kserve are not installed: make setup"
    paths = os.pathsep.join([str(ROOT / "protos"), str(ROOT / "client")])
    words = [python, *flags, "-c", example]
    finished = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize(("mark", "example"), BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_every_example_runs(tiny_service, mark, example, monkeypatch):
    """Every example of the README runs unchanged, except for the address of the service.

    An example that is marked `compile-only`, because it needs certificates, is only compiled.
    """
    example = example.replace("localhost:50051", tiny_service.address)
    code = compile(example, str(GUIDE), "exec")
    if "to_pandas" in example:
        run_with_other_packages(example, "-W", "error")
    elif not mark:
        module = types.ModuleType("example")
        monkeypatch.setitem(sys.modules, "example", module)
        exec(code, vars(module))


def test_the_examples_cover_the_public_names():
    """The tests find every example of the README, and the examples use the most important public names."""
    text = "".join(example for _, example in BLOCKS)
    assert len(BLOCKS) == GUIDE.read_text().count("```python") >= 9
    assert sum(bool(mark) for mark, _ in BLOCKS) == 1
    for name in ("classify", "score", "AsyncClient", "to_pandas", "RetryPolicy", "Tls", "except", "dns:///"):
        assert name in text


def test_the_examples_of_the_open_inference_protocol_run(start_service):
    """Each Python example of docs/open-inference-protocol.md runs unchanged except for the port."""
    service = start_service(ROOT / "models" / "bear-cat-dog" / "1" / "model.onnx")
    page = (ROOT / "docs/open-inference-protocol.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert run_with_other_packages(example.replace("localhost:50051", service.address)).startswith("[")
