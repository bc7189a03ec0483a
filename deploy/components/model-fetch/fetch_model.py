"""Fetch MODEL_URL to MODEL_PATH before the service starts, and discard a file whose SHA-256 is not MODEL_SHA256.

Runs in the image of the service and needs the standard library only.
"""

import hashlib
import os
import sys
import urllib.request
from pathlib import Path

_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 20


def main() -> None:
    """Exit with 0 and keep the file, or exit with 1, print one line with the reason and keep no file."""
    url, wanted, path = os.environ["MODEL_URL"], os.environ["MODEL_SHA256"].lower(), Path(os.environ["MODEL_PATH"])
    if not url.startswith(("https://", "http://")):
        sys.exit(f"fetch_model: MODEL_URL must be https://... or http://..., got {url!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        digest = _fetch(url, partial)
    except OSError as exc:  # includes urllib.error.URLError
        sys.exit(f"fetch_model: {url}: {exc}")
    if digest != wanted:
        partial.unlink()
        sys.exit(f"fetch_model: {url}: expected SHA-256 {wanted}, got {digest}")
    partial.replace(path)
    print(f"{path}: {digest}")


def _fetch(url: str, path: Path) -> str:
    """Write the content of `url` to `path` and return its SHA-256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as source, path.open("wb") as target:  # noqa: S310 - see main
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
