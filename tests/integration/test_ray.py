"""Ray Data over the real service, on a real cluster of this machine: `make test-ray`; skipped where Ray is not."""

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
PATIENCE_S = 400  # Ray starts a dozen processes, which takes two busy cores a while

pytestmark = pytest.mark.timeout(PATIENCE_S + 20)


@pytest.fixture(scope="module")
def bitmaps() -> np.ndarray:
    """The rows of the dataset."""
    return np.random.default_rng(6).integers(0, 256, (ROWS, 28, 28), np.uint8)


@pytest.fixture(scope="module")
def expected(bitmaps, tiny_model) -> np.ndarray:
    """What ONNX Runtime itself says of them."""
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"bitmaps": bitmaps})[0]


@pytest.fixture(scope="module")
def session(root, tiny_service, bitmaps):
    """What the session told; its files are in `folder`."""
    python = root / ".tools/ray/bin/python"
    if not python.exists():
        pytest.skip("Ray is not installed: make test-ray")
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path: Ray puts sockets there
        file = Path(folder, "bitmaps.npy")
        np.save(file, bitmaps)
        script = root / "tests/ray_data/ray_session.py"
        told = run([python, script, tiny_service.address, file, folder], environment(root, folder))
        yield told | {"folder": Path(folder)}


def environment(root: Path, folder: str) -> dict[str, str]:
    """Ray on the loopback interface alone, its token and files in a folder of the test's, and telling nobody of it."""
    return os.environ | {
        "HOME": folder,
        "PYTHONPATH": os.pathsep.join([str(root / "protos"), str(root / "client")]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # "no cluster": on Linux, too, what makes it listen on loopback only
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def run(words: list, env: dict[str, str]) -> dict:
    """The session's last words; whatever it started ends with it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=env, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_every_row_is_scored_once_although_an_actor_was_killed(session, expected):
    """By SIGKILL, with a batch that was scored and not handed over; the scores are those of ONNX Runtime."""
    killed = int((session["folder"] / "killed.pid").read_text())
    assert not Path(f"/proc/{killed}").exists()
    scored = np.load(session["folder"] / "killed.npz")
    assert scored["row"].size == ROWS
    order = np.argsort(scored["row"])
    assert np.array_equal(scored["row"][order], np.arange(ROWS))
    best = np.searchsorted(LABELS, scored["label"][order])  # LABELS are in order
    assert np.allclose(expected[range(ROWS), best], expected.max(axis=1), atol=1e-6)
    assert np.allclose(scored["score"][order], expected.max(axis=1), atol=1e-6)


def test_score_adds_the_columns_asked_for(session, expected):
    """Of one version of the model, which is found before the work is handed out."""
    scored = np.load(session["folder"] / "helped.npz")
    rows = scored["row"]
    assert sorted(rows) == list(range(100))
    for index, label in enumerate(LABELS):
        assert np.allclose(scored[f"score_{label}"], expected[rows, index], atol=1e-6)
    assert np.allclose(scored["score"], expected[rows].max(axis=1), atol=1e-6)
    assert session["unknown_model"] == "no model 'zebra'; there are: tiny (version 1)"


def test_what_is_refused_ends_the_job_with_the_reason(session):
    """Ray does not try it again, and its error has ours in it."""
    assert (
        "RequestRefused: column 'ink': expected bitmaps, got no such column; there are row, bitmap"
        in session["refusal"]
    )


def test_the_cluster_of_the_test_is_out_of_reach(session):
    """Every port it opens is on the loopback interface."""
    addresses = [ipaddress.ip_address(text.removeprefix("::ffff:")) for text in session["listening"]]
    assert addresses
    assert all(address.is_loopback for address in addresses)
