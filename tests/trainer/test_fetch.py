"""Fetching, against a local HTTP server that behaves, or misbehaves, like the bucket."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from sketchbatch_trainer.errors import FetchFailed
from sketchbatch_trainer.fetch import fetch_bitmaps, is_reachable

DRAWINGS = np.random.default_rng(5).integers(0, 256, (20, 784), np.uint8)


def google_npy(array: np.ndarray) -> bytes:
    """A .npy with the 80-byte header of the bucket's files."""
    head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {array.shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + (70).to_bytes(2, "little") + head.ljust(69) + b"\n" + array.tobytes()


class Bucket(BaseHTTPRequestHandler):
    """Serves files by path, honours Range, and cuts off what is named so."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    ignores_range = False

    def do_GET(self):
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        if not self.ignores_range:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(200 if self.ignores_range else 206)
        self.send_header("Content-Length", str(len(content) + (1000 if "cut" in self.path else 0)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Silent."""


@pytest.fixture
def bucket() -> Iterator[str]:
    """The base address of a running bucket."""
    odd = io.BytesIO()
    np.save(odd, np.zeros((4, 3)))
    files = {
        "bear": google_npy(DRAWINGS),
        "The%20Eiffel%20Tower": google_npy(DRAWINGS),
        "page": b"<!doctype html> sign in",
        "cut": google_npy(DRAWINGS)[:5000],
        "odd": odd.getvalue(),
        "head": google_npy(DRAWINGS)[:90],
    }
    Bucket.files = {f"/numpy_bitmap/{name}.npy": content for name, content in files.items()}
    Bucket.ignores_range = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("ignores_range", [False, True])
@pytest.mark.parametrize(("rows", "got"), [(7, 7), (20, 20), (50, 20)])
def test_the_first_rows_arrive_exactly(bucket, tmp_path, rows, got, ignores_range):
    """By a Range or from a server that ignores it; fewer where there are fewer."""
    Bucket.ignores_range = ignores_range
    path = fetch_bitmaps("bear", rows, tmp_path, bucket)
    assert np.array_equal(np.load(path), DRAWINGS[:got])


def test_a_name_with_spaces_is_quoted(bucket, tmp_path):
    """As the bucket wants it."""
    assert fetch_bitmaps("The Eiffel Tower", 1, tmp_path, bucket).name == "The Eiffel Tower.npy"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("zebra", "the server says 404"),
        ("page", "expected a .npy file, got b'<!doctype html>"),
        ("cut", "cut off after 5000 of"),
        ("odd", r"expected uint8 \(rows, 784\), got float64 \(4, 3\)"),
        ("head", "expected 20 drawings, got none"),
    ],
)
def test_what_is_not_drawings_is_refused_and_nothing_kept(bucket, tmp_path, label, message):
    """One line with the address; no file, whole or partial."""
    with pytest.raises(FetchFailed, match=message):
        fetch_bitmaps(label, 20, tmp_path, bucket)
    assert not list(tmp_path.iterdir())


def test_offline_is_said_clearly(bucket, tmp_path, run_command):
    """Reachable or not; the command ends in one line."""
    assert is_reachable(bucket)
    assert not is_reachable("http://127.0.0.1:1")
    words = ["fetch", "--folder", tmp_path / "d", "--base-url", "http://127.0.0.1:1"]
    finished = run_command("sketchbatch-train", *words)
    assert finished.returncode == 1
    assert "cannot be reached: [Errno 111] Connection refused" in finished.stderr
    assert finished.stderr.count("\n") == 1
