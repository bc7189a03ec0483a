"""Proves who we are, and finds out who the server is: TLS, and a token with every request."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from .targets import Options, is_local

Metadata = tuple[tuple[str, str | bytes], ...]
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
    """A bearer token; one from a file is read again when the file has changed.

    Raises:
        ValueError: Both are given, or the token is empty or no visible ASCII.
        OSError: The file cannot be read.
    """

    def __init__(self, text: str | None, file: Path | None) -> None:
        if text is not None and file is not None:
            raise ValueError("give token or token_file, not both")
        self._file = None if file is None else Path(file)
        self._version = () if self._file is None else _version(self._file)
        text = text if self._file is None else self._file.read_text()
        self._metadata = None if text is None else _bearer(text)

    def __bool__(self) -> bool:
        """Whether there is one."""
        return self._metadata is not None

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


class Access:
    """How channels are opened, and what goes with each request.

    Over TLS gRPC adds the token itself, also to its own watch of the server's health. It adds none to what is not
    encrypted: there each request gets it from us, and health is not watched, which the server may want a token for.

    Raises:
        ValueError: The token would go to another machine in the clear, and that is not allowed by `insecure_token`.
        OSError: A certificate cannot be read.
    """

    def __init__(self, targets: Iterable[str], tls: Tls | bool, token: Token, *, insecure_token: bool) -> None:
        encryption = Tls() if tls is True else tls or None
        remote = [target for target in targets if not is_local(target)]
        if token and remote and not encryption and not insecure_token:
            raise ValueError(f"the token would go to {remote[0]} unencrypted: use TLS, or allow that (insecure_token)")
        self.options = encryption.options if encryption else []
        self.credentials = _channel_credentials(encryption, token) if encryption else None
        self.watches_health = encryption is not None or not token
        self._token = None if encryption or not token else token

    def metadata(self) -> Metadata | None:
        """For one request."""
        return self._token.metadata() if self._token else None


class _Signature(grpc.AuthMetadataPlugin):
    def __init__(self, token: Token) -> None:
        self._token = token

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        callback(self._token.metadata() or (), None)


def _channel_credentials(tls: Tls, token: Token) -> grpc.ChannelCredentials:
    encryption = tls.channel_credentials()
    if not token:
        return encryption
    return grpc.composite_channel_credentials(encryption, grpc.metadata_call_credentials(_Signature(token)))


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
