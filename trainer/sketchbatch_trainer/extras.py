"""Import packages of an extra of this distribution: quietly, and with a clear error if the extra is not installed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ExtraMissing

PACKAGES = {
    "adapt": {"onnx", "onnxruntime"},
    "explore": {"matplotlib"},
    "train": {"h5py", "keras", "matplotlib", "onnx", "onnxruntime", "tensorboard", "tensorflow", "tf2onnx"},
}
"""The packages that each extra installs, by import name."""


@contextmanager
def importing(extra: str) -> Iterator[None]:
    """Hide the start-up messages of the packages that the block imports.

    TensorFlow's C++ code prints them to stderr before any setting takes effect.

    Raises:
        ExtraMissing: A package of the extra is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hides TensorFlow's later messages about missing GPUs
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # stops the reports of ONNX Runtime to Microsoft
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in PACKAGES[extra]:
            raise
        way = f"pip install 'sketchbatch-trainer[{extra}]', or in a checkout `make setup`, which installs .venv"
        raise ExtraMissing(f"{package} is not installed: {way}") from exc
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
