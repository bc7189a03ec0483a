"""Fetches the first drawings of a class from Google's bucket, by an HTTP Range of its .npy file."""

import io
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path

import numpy as np
from sketchbatch_client.readers import Bitmaps

from .drawings import write_bitmaps
from .errors import FetchFailed

BUCKET = "https://storage.googleapis.com/quickdraw_dataset/full"
"""https://github.com/googlecreativelab/quickdraw-dataset#get-the-data"""

SOURCE = "Quick, Draw! drawings by Google (CC BY 4.0), the first {rows} of each class"

_HEADER_BYTES = 80  # in every file of the bucket; a longer header costs the last row or two, never a wrong one
_ROW_BYTES = 784


def is_reachable(base_url: str = BUCKET, timeout_s: float = 5.0) -> bool:
    """True if the bucket answers with the beginning of a .npy file."""
    try:
        return _get(f"{base_url}/numpy_bitmap/bear.npy", 6, timeout_s) == b"\x93NUMPY"
    except FetchFailed:
        return False


def fetch_bitmaps(label: str, rows: int, folder: Path, base_url: str = BUCKET, timeout_s: float = 60.0) -> Path:
    """Writes the first `rows` drawings of `label` (fewer if there are fewer) to FOLDER/LABEL.npy.

    Raises:
        FetchFailed: The bucket cannot be reached, has no such class, or sent something other than drawings.
    """
    url = f"{base_url}/numpy_bitmap/{urllib.parse.quote(label)}.npy"
    path = folder / f"{label}.npy"
    write_bitmaps(path, _parsed(url, _get(url, _HEADER_BYTES + rows * _ROW_BYTES, timeout_s), rows))
    return path


def _get(url: str, size: int, timeout_s: float) -> bytes:
    """The first `size` bytes of `url`, fewer if it is smaller; never more, even if the server ignores the Range."""
    request = urllib.request.Request(url, headers={"Range": f"bytes=0-{size - 1}"})  # noqa: S310 - http(s) by callers
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            content: bytes = response.read(size)
            promised = response.headers["Content-Length"]
    except urllib.error.HTTPError as exc:
        raise FetchFailed(f"{url}: the server says {exc.code} {exc.reason}") from exc
    except (OSError, HTTPException, ValueError) as exc:
        raise FetchFailed(f"{url}: cannot be reached: {getattr(exc, 'reason', exc)}") from exc
    if promised and len(content) < min(size, int(promised)):
        raise FetchFailed(f"{url}: cut off after {len(content)} of {min(size, int(promised))} bytes; try again")
    return content


def _parsed(url: str, content: bytes, rows: int) -> Bitmaps:
    """The whole rows that came, at most `rows`."""
    file = io.BytesIO(content)
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as exc:  # NumPy parses the header as Python text, and lets through whatever that raises
        raise FetchFailed(f"{url}: expected a .npy file, got {content[:20]!r}") from exc
    if dtype != np.uint8 or shape[1:] != (_ROW_BYTES,):
        raise FetchFailed(f"{url}: expected uint8 (rows, {_ROW_BYTES}), got {dtype} {shape}")
    payload = content[file.tell() :]
    whole = min(rows, len(payload) // _ROW_BYTES)
    if not whole:
        raise FetchFailed(f"{url}: expected {rows} drawings, got none")
    return np.frombuffer(payload[: whole * _ROW_BYTES], np.uint8).reshape(whole, 28, 28)
