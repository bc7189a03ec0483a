"""Provide the fixtures that need the client only; with `-p portable --noconftest` they work without the service."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["GRPC_VERBOSITY"] = "NONE"  # read by the import of gRPC, whose log would appear in captured output

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
QUICKDRAW = ROOT.parent / "shared" / "data" / "quickdraw"


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def quickdraw() -> Path:
    """Return the folder of real drawings in Google's layout; skip the test if the folder is missing."""
    if not QUICKDRAW.is_dir():
        pytest.skip("no real drawings: ../shared/data/quickdraw is absent")
    return QUICKDRAW


@pytest.fixture
def noise() -> Callable[[int], np.ndarray]:
    """Return a function that makes random bitmaps; two calls with the same number of rows return equal bitmaps."""
    return lambda rows: np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), np.uint8)
