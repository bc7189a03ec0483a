"""The examples in the client's README run."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)  # one example starts a process that imports pandas

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "client" / "README.md"
BLOCKS = re.findall(r"^```python( compile-only)?\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def run_with_pandas(example: str) -> None:
    """Run an example with the Python of .tools/openinference, in which pandas is installed."""
    python = ROOT / ".tools/openinference/bin/python"
    assert python.exists(), "pandas is not installed: make setup"
    paths = os.pathsep.join([str(ROOT / "protos"), str(ROOT / "client")])
    words = [python, "-W", "error", "-c", example]
    finished = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(("mark", "example"), BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_every_example_runs(tiny_service, mark, example, monkeypatch):
    """Every example of the README runs unchanged, except for the address of the service.

    An example that is marked `compile-only`, because it needs certificates, is only compiled.
    """
    example = example.replace("localhost:50051", tiny_service.address)
    code = compile(example, str(GUIDE), "exec")
    if "to_pandas" in example:
        run_with_pandas(example)
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
