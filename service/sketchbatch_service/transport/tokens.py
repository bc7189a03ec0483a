"""Authenticate calls by the bearer tokens of a file.

The file may hold several tokens, so that clients can change from an old token to a new one. It is checked for changes
at most once a second. Tokens are stored and compared as SHA-256, so that neither timing nor memory reveals a token.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import CredentialsUnusable
from .file_reloader import FileReloader, read_credentials
from .interface import Metadata

_MIN_CHARACTERS = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1
_CHECK_INTERVAL_S = 1.0  # a removed token may still be accepted for this time

_MISSING = "a bearer token is needed: metadata 'authorization: Bearer TOKEN'"
_WRONG = "the bearer token is not accepted"


class TokenFile:
    """Accept calls that carry a token of the file at `path`: one token per line, blank lines and # comments ignored.

    Methods whose path (`/package.Service/Method`) is in `open_methods` need no token. The constructor raises
    CredentialsUnusable if the file is missing or holds no token, or if a line is not a token or too short.
    """

    def __init__(
        self, path: Path, open_methods: frozenset[bytes], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = FileReloader([path], lambda: _digests(path), clock=clock)
        self._open_methods = open_methods
        self._clock = clock
        self._next_check_at = 0.0

    def rejection_reason(self, method: bytes, metadata: Metadata) -> str | None:
        """Return why a call is rejected; None = it is accepted. This method is an `Authenticator`."""
        if method in self._open_methods:
            return None
        sent = [value for key, value in metadata if key == "authorization"]
        if len(sent) != 1:
            return _MISSING
        scheme, _, token = str(sent[0]).partition(" ")
        if scheme.lower() != "bearer":
            return _MISSING
        return None if self._is_known(token.strip()) else _WRONG

    @property
    def reload_failures(self) -> int:
        """The number of failed attempts to read the changed file."""
        return self._file.failures

    @property
    def is_stale(self) -> bool:
        """Return whether a changed file could not be read, so that the previous content is in use."""
        return self._file.is_stale

    def _is_known(self, token: str) -> bool:
        now = self._clock()
        if now >= self._next_check_at:
            self._next_check_at = now + _CHECK_INTERVAL_S
            self._file.reload_if_changed()
        digest = _digest(token)
        # Compare all tokens, so that the duration does not depend on which one matches.
        matches = [hmac.compare_digest(digest, known) for known in self._file.content]
        return any(matches)


def _digests(path: Path) -> list[bytes]:
    lines = read_credentials(path).decode("ascii", "replace").splitlines()
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    tokens = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    for number, token in tokens:
        if not _TOKEN.fullmatch(token) or len(token) < _MIN_CHARACTERS:
            raise CredentialsUnusable(
                f"{path}:{number}: a token must be {_MIN_CHARACTERS} or more of A-Z a-z 0-9 ._~+/- (= at its end), "
                f"got {_size(token)}"  # the message must not contain the token
            )
    if not tokens:
        raise CredentialsUnusable(f"{path}: expected one token per line, got none")
    return [_digest(token) for _, token in tokens]


def _size(line: str) -> str:
    words = len(line.split())
    return f"{words} words" if words > 1 else f"{len(line)} characters"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
