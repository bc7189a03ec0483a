"""Run a local HTTP server that behaves like Google's storage of drawings, with faults that a test can inject."""

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Bucket:
    """Hold the files that the server sends, the faults that a test injects, and the requests that have arrived.

    Files and faults are stored by path, for example `numpy_bitmap/bear.npy`.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.statuses: dict[str, list[int]] = {}
        """HTTP statuses of the next requests by path, one status per request; 200 means no fault."""
        self.cuts: dict[str, list[int]] = {}
        """By path: the offsets in the file at which the server closes the connection, one offset per next request."""
        self.holds: dict[str, list[int]] = {}
        """By path: the offsets in the file at which the server pauses until `release` is set, one per next request."""
        self.release = threading.Event()
        self.held = threading.Semaphore(0)
        """Semaphore that the server releases once for each response that pauses."""
        self.ignores_range = False
        self.misplaced_bytes = 0
        """Offset between the requested byte range and the byte range that the server sends."""
        self.retry_after_s = 0
        self.md5: dict[str, str] = {}
        """Wrong MD5 digests that the server sends, by path; other files have their correct digest."""
        self.requests: list[tuple[str, int, int]] = []
        """For each request that has arrived: its path, and the first and the last byte of the requested range."""
        self.url = ""

    def ranges_of(self, path: str) -> list[tuple[int, int]]:
        """Return the first and the last byte of each request for `path`."""
        return [(first, last) for requested, first, last in self.requests if requested == path]

    def wait_until_paused(self) -> None:
        """Wait until one more response pauses."""
        assert self.held.acquire(timeout=15)


@contextmanager
def serving() -> Iterator[Bucket]:
    """Serve a bucket on a free port of this machine."""
    bucket = Bucket()

    class Handler(_Handler):
        pass

    Handler.bucket = bucket
    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    yield bucket
    bucket.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        """Ignore clients that disconnect early, because tests disconnect on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def do_GET(self):
        path = unquote(self.path).lstrip("/")
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        self.bucket.requests.append((path, first, last))
        content = self.bucket.files.get(path)
        status = _next(self.bucket.statuses, path, 200)
        if status != 200:
            self._refuse(status)
        elif content is None:
            self._refuse(404)
        elif self.bucket.ignores_range:
            self._send(path, content, 0, len(content))
        elif first >= len(content):
            self._refuse(416)
        else:
            self._send(path, content, first + self.bucket.misplaced_bytes, min(last + 1, len(content)))

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Retry-After", str(self.bucket.retry_after_s))
        self.end_headers()

    def _send(self, path: str, content: bytes, start: int, stop: int) -> None:
        self.send_response(200 if self.bucket.ignores_range else 206)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        self.send_header("x-goog-hash", "crc32c=AAAAAA==")
        self.send_header("x-goog-hash", f"md5={self.bucket.md5.get(path, md5)}")
        self.end_headers()
        end = min(stop, _next(self.bucket.cuts, path, stop))
        pause = _next(self.bucket.holds, path, stop)
        self.wfile.write(content[start : min(pause, end)])
        if pause < end:
            self.bucket.held.release()
            self.bucket.release.wait(60)
            self.wfile.write(content[max(start, pause) : end])
        self.close_connection = end < stop

    def log_message(self, *_):
        """Print no log line for a request."""


def _next(faults: dict[str, list[int]], path: str, default: int) -> int:
    return faults[path].pop(0) if faults.get(path) else default
