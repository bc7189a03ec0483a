"""Proves who we are, and finds out who the server is: TLS, and a token with every request."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from .targets import Options, is_local

Metadata = tuple[tuple[str, str], ...]
Pem = Path | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to speak TLS. Certificates and keys are PEM, as bytes or in a file, which is read once."""

    ca: Pem | None = None
    """Who signs the servers' certificates; None = the public authorities that gRPC knows."""
    cert: Pem | None = None
    """Our own certificate, for servers that want one (mutual TLS)."""
    key: Pem | None = None
    """Its private key."""
    server_name: str | None = None
    """The name in the servers' certificates, where it is not that of the address."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError(f"cert and key go together, got {'key' if self.cert is None else 'cert'} alone")

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """What gRPC opens a channel with. Raises OSError: a file cannot be read."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    @property
    def options(self) -> Options:
        """What else a channel must be told."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []


class Token:
    """A bearer token, sent with each request, or none; one from a file is read again when the file has changed.

    Raises:
        ValueError: Both are given, the token is empty or no visible ASCII, or it would leave this machine unencrypted.
        OSError: The file cannot be read.
    """

    def __init__(self, token: str | None, file: Path | None) -> None:
        if token is not None and file is not None:
            raise ValueError("give token or token_file, not both")
        self._file = None if file is None else Path(file)
        self._version = () if self._file is None else _version(self._file)
        text = token if self._file is None else self._file.read_text()
        self._metadata = None if text is None else _bearer(text)

    def check_privacy(self, targets: Iterable[str]) -> None:
        """Refuses to send a token in the clear to another machine."""
        remote = [target for target in targets if not is_local(target)]
        if self._metadata and remote:
            raise ValueError(f"the token would go to {remote[0]} unencrypted: use TLS, or say insecure_token=True")

    def metadata(self) -> Metadata | None:
        """What goes with the next request."""
        if self._file is not None:
            self._read_if_changed(self._file)
        return self._metadata

    def _read_if_changed(self, file: Path) -> None:
        try:
            version = _version(file)
            if version != self._version:
                self._metadata = _bearer(file.read_text())
                self._version = version
        except (OSError, ValueError):  # being replaced just now: the one we have may do until it is
            return


def _version(file: Path) -> tuple[int, ...]:
    """Another one after each change; follows the links by which Kubernetes swaps projected tokens."""
    told = file.stat()
    return told.st_ino, told.st_mtime_ns, told.st_size


def _bearer(text: str) -> Metadata:
    token = text.strip()
    if not token or not all("!" <= each <= "~" for each in token):
        raise ValueError("the token must be visible ASCII, without spaces, and not empty")
    return (("authorization", f"Bearer {token}"),)


def _read(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()
