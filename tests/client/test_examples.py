"""The examples in the client's README, in docs/bulk-scoring.md and in docs/open-inference-protocol.md run."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from sketchbatch_client.drawings.readers import open_bitmaps

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
    service = start_service(ROOT / "models" / "bear-cat-dog" / "2" / "model.onnx")
    page = (ROOT / "docs/open-inference-protocol.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert run_with_other_packages(example.replace("localhost:50051", service.address)).startswith("[")


_NAMES = ",".join(["label", *(f"{row}x{column}" for row in range(28) for column in range(28))])


@pytest.mark.parametrize("header", [_NAMES, ",".join(map(str, range(785))), ""], ids=["names", "numbers", "none"])
def test_the_files_of_mnist_become_drawings(tmp_path, monkeypatch, noise, header):
    """The code of docs/bulk-scoring.md converts a CSV with a label before the pixels, and an IDX file of pictures.

    pandas writes numbers as names of columns.
    """
    monkeypatch.chdir(tmp_path)
    bitmaps = noise(4)
    table = np.insert(bitmaps.reshape(4, 784), 0, [7, 2, 1, 0], axis=1)
    np.savetxt("mnist_test.csv", table, "%d", delimiter=",", header=header, comments="")
    head = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in bitmaps.shape)
    Path("t10k-images.idx3-ubyte").write_bytes(head + bitmaps.tobytes())
    page = (ROOT / "docs/bulk-scoring.md").read_text()
    [example] = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "mnist" in each]
    exec(example, {})
    for name in ("mnist_test.npy", "t10k.npy"):
        assert np.array_equal(open_bitmaps(tmp_path / name)[:], bitmaps)
