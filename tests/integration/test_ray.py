"""Score with Ray Data on a local cluster through a real service; the tests are skipped without Ray (docs/ray.md)."""

import ipaddress
import json
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx_models import LABELS

ROWS = 20_000
TIMEOUT_S = 400  # Ray starts a dozen processes, which is slow on two busy cores

pytestmark = pytest.mark.timeout(TIMEOUT_S + 20)


@pytest.fixture(scope="module")
def bitmaps() -> np.ndarray:
    """Return the bitmaps of the dataset."""
    return np.random.default_rng(6).integers(0, 256, (ROWS, 28, 28), np.uint8)


@pytest.fixture(scope="module")
def expected(bitmaps, tiny_model) -> np.ndarray:
    """Return the scores that ONNX Runtime, called directly, computes for the bitmaps."""
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"bitmaps": bitmaps})[0]


@pytest.fixture(scope="module")
def session(root, tiny_service, bitmaps):
    """Run tests/ray_data/ray_session.py; yield its report, with the folder of its output files under `folder`."""
    python = root / ".tools/ray/bin/python"
    if not python.exists():
        pytest.skip("Ray is not installed: make .tools/ray/.done")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # Ray puts sockets there, whose paths must be short
        file = Path(folder, "bitmaps.npy")
        np.save(file, bitmaps)
        script = root / "tests/ray_data/ray_session.py"
        report = run([python, script, tiny_service.address, file, folder], environment(root, folder))
        yield report | {"folder": Path(folder)}


def environment(root: Path, folder: str) -> dict[str, str]:
    """Return environment variables for Ray.

    They restrict Ray to the loopback interface and to the test's folder, and turn off Ray's usage reports.
    """
    return os.environ | {
        "HOME": folder,
        "PYTHONPATH": os.pathsep.join([str(root / "protos"), str(root / "client")]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # this variable makes Ray listen on loopback only, on Linux as well
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def run(words: list, env: dict[str, str]) -> dict:
    """Run the session script, then kill all processes that it started; return the JSON on its last line of output."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=env, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_every_row_is_scored_once_if_an_actor_is_killed(session, expected):
    """The scored dataset has every row once, even if SIGKILL ends an actor that has scored a batch.

    The actor is killed before it returns this batch to Ray.
    """
    killed = int((session["folder"] / "killed.pid").read_text())
    assert not Path(f"/proc/{killed}").exists()
    scored = np.load(session["folder"] / "killed.npz")
    assert scored["row"].size == ROWS
    order = np.argsort(scored["row"])
    assert np.array_equal(scored["row"][order], np.arange(ROWS))
    best = np.searchsorted(LABELS, scored["label"][order])  # LABELS are in alphabetical order, as searchsorted requires
    assert np.allclose(expected[range(ROWS), best], expected.max(axis=1), atol=1e-6)
    assert np.allclose(scored["score"][order], expected.max(axis=1), atol=1e-6)


def test_score_adds_the_requested_columns(session, expected):
    """`score` adds the requested columns, and an unknown model is an error before the job starts."""
    scored = np.load(session["folder"] / "helped.npz")
    rows = scored["row"]
    assert sorted(rows) == list(range(100))
    for index, label in enumerate(LABELS):
        assert np.allclose(scored[f"score_{label}"], expected[rows, index], atol=1e-6)
    assert np.allclose(scored["score"], expected[rows].max(axis=1), atol=1e-6)
    assert session["unknown_model"] == "no model 'zebra'; there are: tiny (version 1)"


def test_an_invalid_column_ends_the_job_with_the_reason(session):
    """A batch with an invalid column ends the job, and Ray's error contains the client's error."""
    assert "RequestRefused: column 'ink' must exist and hold bitmaps, got the columns row, bitmap" in session["refusal"]


def test_the_cluster_listens_on_loopback_only(session):
    """The cluster listens on loopback only, so that other machines cannot reach the cluster of the test."""
    addresses = [ipaddress.ip_address(text.removeprefix("::ffff:")) for text in session["listening"]]
    assert addresses
    assert all(address.is_loopback for address in addresses)
