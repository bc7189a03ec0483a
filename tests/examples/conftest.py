"""Provide the commands of the examples, and a service with so many classes that scores exceed gRPC's default limit."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from portable import ROOT

EXAMPLES = ROOT / "examples"
UNUSED = "127.0.0.1:1"  # no server listens on port 1


def node() -> list[str]:
    """Return the command of the Node example, or skip the test."""
    if not shutil.which("node"):
        pytest.skip("node is absent")
    if not (EXAMPLES / "node/node_modules/@grpc/grpc-js").is_dir():
        pytest.skip("examples/node/node_modules is absent: run `make examples`")
    return ["node", "node/classify.js"]


def cpp() -> list[str]:
    """Return the command of the C++ example, or skip the test."""
    program = EXAMPLES / "cpp/build/classify"
    if not program.is_file():
        pytest.skip("the C++ example is not built: run `make examples`")
    sources = [EXAMPLES / "cpp/classify.cc", ROOT / "protos/sketchbatch/v1/classifier.proto"]
    if any(source.stat().st_mtime > program.stat().st_mtime for source in sources):
        pytest.skip("the C++ example is older than its source: run `make examples`")
    return [str(program)]


def grpcurl() -> list[str]:
    """Return the command of the grpcurl example, or skip the test."""
    if not shutil.which("grpcurl"):
        pytest.skip("grpcurl is absent")
    return ["./grpcurl.sh"]


def notebook() -> list[str]:
    """Return a command that runs the code cells of the notebook in order."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    return [sys.executable, "-c", "\n".join(code)]


def python(name: str) -> Callable[[], list[str]]:
    """Return a function that returns the command of a Python example."""
    return lambda: [sys.executable, f"python/{name}"]


COMMANDS = {
    "python/unary.py": python("unary.py"),
    "python/stream.py": python("stream.py"),
    "python/many.py": python("many.py"),
    "python/bulk.py": python("bulk.py"),
    "node/classify.js": node,
    "cpp/classify.cc": cpp,
    "grpcurl.sh": grpcurl,
    "notebook.ipynb": notebook,
}
"""A function per example that returns its command, without arguments."""


def run(words: list[str], server: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a command in the folder of the examples, with the commands of this environment in PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"SKETCHBATCH_SERVER": server, "PATH": path} | variables
    return subprocess.run(words, cwd=EXAMPLES, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with 5,000 bitmaps of the cat of the examples."""
    path = tmp_path_factory.mktemp("cats") / "cats.npy"
    cat = np.frombuffer((EXAMPLES / "cat.bitmap").read_bytes(), np.uint8)
    np.save(path, np.tile(cat, (5000, 1)))
    return path


@pytest.fixture(scope="session")
def wide_service(start_service):
    """Return a running service of the shipped model with 345 classes."""
    return start_service(ROOT / "models/quickdraw-345/2/model.onnx")
