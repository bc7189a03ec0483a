"""Lets in the calls that bring one of the bearer tokens of a file, and those of open methods.

The file may hold several, so that callers can change from an old one to a new one; it is looked at again at most once
a second. Tokens are kept and compared as SHA-256: neither the time it takes nor our memory tells anything of one.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import CredentialsUnusable
from .file_reloader import FileReloader

_LEAST_CHARACTERS = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # as RFC 6750 writes one, section 2.1
_LOOK_S = 1.0
"""How long a token that was taken out of the file may still be good."""

_MISSING = "a bearer token is needed: metadata 'authorization: Bearer TOKEN'"
_WRONG = "the bearer token is none that this service takes"


class TokenFile:
    """The tokens at `path`, one a line; blank lines and those that begin with # are passed over.

    Args:
        path: Read now, and when it has changed.
        open_methods: Paths of the methods (`/package.Service/Method`) that need none.

    Raises:
        CredentialsUnusable: There is no such file, no token in it, or a line is none or too short.
    """

    def __init__(self, path: Path, open_methods: frozenset[bytes]) -> None:
        self._file = FileReloader([path], lambda: _digests(path))
        self._open_methods = open_methods
        self._next_look_at = 0.0  # time.monotonic seconds

    def rejection_reason(self, method: bytes, metadata: Sequence[tuple[str, str | bytes]]) -> str | None:
        """Why a call may not be answered, for its caller; None = it may."""
        if method in self._open_methods:
            return None
        sent = [value for key, value in metadata if key == "authorization"]
        if len(sent) != 1:
            return _MISSING
        scheme, _, token = str(sent[0]).partition(" ")
        if scheme.lower() != "bearer":
            return _MISSING
        return None if self._is_known(token.strip()) else _WRONG

    def _is_known(self, token: str) -> bool:
        now = time.monotonic()
        if now >= self._next_look_at:
            self._next_look_at = now + _LOOK_S
            self._file.changed()
        digest = _digest(token)
        matches = [hmac.compare_digest(digest, known) for known in self._file.content]  # all, whichever fits
        return any(matches)


def _digests(path: Path) -> list[bytes]:
    try:
        lines = path.read_text("ascii", "replace").splitlines()
    except OSError as exc:
        raise CredentialsUnusable(f"{path}: cannot be read: {exc.strerror}") from exc
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    tokens = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    for number, token in tokens:
        if not _TOKEN.fullmatch(token) or len(token) < _LEAST_CHARACTERS:
            raise CredentialsUnusable(
                f"{path}:{number}: a token must be {_LEAST_CHARACTERS} or more of A-Z a-z 0-9 ._~+/- (= at its end), "
                f"got {len(token)} characters"  # never the characters themselves
            )
    if not tokens:
        raise CredentialsUnusable(f"{path}: expected a token a line, got none")
    return [_digest(token) for _, token in tokens]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
