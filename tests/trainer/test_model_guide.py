"""Run the commands of docs/model-file.md on models as PyTorch, Keras and scikit-learn export them."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapted_graphs import write_scikit_learn
from foreign_models import LABELS, write_foreign

pytestmark = [
    pytest.mark.timeout(300),  # TensorFlow takes 10 s to import, here and in the command that adapts a Keras file
    pytest.mark.filterwarnings("ignore"),  # warnings of TensorFlow and Keras
]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(root: Path, heading: str) -> list[tuple[str, str]]:
    """Return the blocks below a heading of the page, in order: the language ("" for commands), and the text."""
    section = (root / "docs" / "model-file.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return _BLOCK.findall(section)


def command_of(root: Path, heading: str) -> list[str]:
    """Return the words of the one command below a heading."""
    (command,) = [text for language, text in blocks(root, heading) if not language]
    return shlex.split(command)


def subjects(output: str) -> list[str]:
    """Return the first words of the lines that state a finding, such as "source" and "scaling"."""
    return re.findall(r"^(\w[\w ]*):", output, re.MULTILINE)


@pytest.fixture
def adapt(root, tmp_path, run_command) -> Callable[[str], str]:
    """Return a function that runs the command below a heading in `tmp_path` and returns its output."""

    def run(heading: str) -> str:
        finished = run_command(*command_of(root, heading), cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run


def test_a_model_of_pytorch_is_adapted_served_and_evaluated(root, tmp_path, adapt, start_service, run_command):
    """The walk-through of PyTorch prints what the page shows, and its file can be served and evaluated."""
    write_foreign("torch", tmp_path / "mnist.onnx")
    shown = next(text for language, text in blocks(root, "PyTorch") if language == "text")
    assert [each for each in subjects(adapt("PyTorch")) if each != "note"] == subjects(shown)
    serve, evaluate = [shlex.split(text) for language, text in blocks(root, "Serve and check") if not language]
    assert serve == ["sketchbatch-serve", "--model", "model.onnx", "--address", "127.0.0.1:50051"]
    service = start_service(tmp_path / "model.onnx")
    (tmp_path / "drawings").mkdir()
    for label in LABELS:
        np.save(tmp_path / "drawings" / f"{label}.npy", np.zeros((3, 784), np.uint8))
    evaluated = run_command(*evaluate, "--server", service.address, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "accuracy" in evaluated.stdout


def test_a_model_of_scikit_learn_is_adapted(tmp_path, adapt, start_service):
    """The command of the walk-through of scikit-learn writes a file that can be served."""
    write_scikit_learn(tmp_path / "classifier.onnx")
    adapt("scikit-learn")
    start_service(tmp_path / "model.onnx")


@pytest.mark.slow
def test_a_model_of_keras_is_adapted(root, tmp_path, adapt, start_service):
    """The Python code and the command of the walk-through of Keras write a file that can be served."""
    import keras

    layers = keras.layers.Flatten(), keras.layers.Dense(len(LABELS), activation="softmax")
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    (code,) = [text for language, text in blocks(root, "Keras") if language == "python"]
    exec(code.replace('"mine.keras"', repr(str(tmp_path / "mine.keras"))), {"model": model})
    adapt("Keras")
    start_service(tmp_path / "model.onnx")
