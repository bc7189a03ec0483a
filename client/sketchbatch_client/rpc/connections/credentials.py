"""Authenticate the servers and the client: TLS, and a bearer token with every request."""

import codecs
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from ...file_stamp import file_stamp
from .targets import ChannelOptions, is_local

Metadata = tuple[tuple[str, str | bytes], ...]
Pem = Path | str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS settings. Certificates and keys are PEM: as bytes, or as the path of a file that is read once."""

    ca: Pem | None = None
    """Authorities that sign the servers' certificates; None = the public authorities that gRPC trusts."""
    cert: Pem | None = None
    """Client certificate, for servers that require one (mutual TLS)."""
    key: Pem | None = None
    """Private key of `cert`."""
    server_name: str | None = None
    """The name in the servers' certificates, if it differs from the host of the target."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError(f"cert and key must be given together, got only {'key' if self.cert is None else 'cert'}")


class Token(grpc.AuthMetadataPlugin):
    """A bearer token; a token from a file is read again when the file has changed.

    Raises:
        ValueError: Both arguments are given, or the token is empty or not visible ASCII.
        OSError: The file cannot be read.
    """

    def __init__(self, text: str | None, file: Path | str | None) -> None:
        if text is not None and file is not None:
            raise ValueError("give token or token_file, not both")
        self._file = None if file is None else Path(file)
        self._stamp: tuple[int, ...] = ()
        self._metadata = None if text is None else _bearer(text)
        self._read_if_changed()

    def __bool__(self) -> bool:
        return self._metadata is not None

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """Add the token to a call; gRPC calls this method for every call over TLS."""
        callback(self.metadata() or (), None)

    def metadata(self) -> Metadata | None:
        """Return the metadata of the next request."""
        with suppress(OSError, ValueError):  # the file is being replaced: keep the last token
            self._read_if_changed()
        return self._metadata

    def _read_if_changed(self) -> None:
        if self._file is None:
            return
        stamp = file_stamp(self._file)  # follows the links by which Kubernetes replaces projected tokens
        if stamp != self._stamp:
            self._metadata = _bearer(_read(self._file).decode("ascii", "replace"))
            self._stamp = stamp


class Credentials:
    """The credentials of all channels and requests of a client.

    With TLS, gRPC adds the token to every call, also to the health watch. Without TLS, gRPC adds no token: the client
    adds it to each request and turns the health watch off, because a server may require a token for the watch.

    Raises:
        ValueError: The token would be sent unencrypted to another machine, and `insecure_token` does not allow that; or
            a certificate or key is not PEM.
        OSError: A certificate cannot be read.
    """

    def __init__(self, targets: Iterable[str], tls: Tls | bool, token: Token, *, insecure_token: bool) -> None:
        if not isinstance(tls, (bool, Tls)):
            raise ValueError(f"tls must be True, False or a Tls, got {tls!r}")
        encryption = Tls() if tls is True else tls or None
        remote = [target for target in targets if not is_local(target)]
        if token and remote and not encryption and not insecure_token:
            raise ValueError(f"the token would be sent unencrypted to {remote[0]}: use TLS, or allow insecure_token")
        self.options: ChannelOptions = []
        if encryption and encryption.server_name:
            self.options = [("grpc.ssl_target_name_override", encryption.server_name)]
        self.channel_credentials = _channel_credentials(encryption, token) if encryption else None
        self.can_watch_health = encryption is not None or not token
        self._token = None if encryption or not token else token

    def call_metadata(self) -> Metadata | None:
        """Return the metadata that the client must add to a request."""
        return self._token.metadata() if self._token else None


def _channel_credentials(tls: Tls, token: Token) -> grpc.ChannelCredentials:
    ca, cert = _pem("ca", tls.ca, "CERTIFICATE"), _pem("cert", tls.cert, "CERTIFICATE")
    encryption = grpc.ssl_channel_credentials(ca, _pem("key", tls.key, "PRIVATE KEY"), cert)
    if not token:
        return encryption
    return grpc.composite_channel_credentials(encryption, grpc.metadata_call_credentials(token))


def _bearer(text: str) -> Metadata:
    if not isinstance(text, str):
        raise ValueError(f"token must be text, got {type(text).__name__}")
    words = text.split()
    if len(words) > 1:  # perhaps a comment, or a second token
        raise ValueError(f"token must be visible ASCII without spaces, got {len(words)} words")
    if not words or not all("!" <= each <= "~" for each in words[0]):
        got = "other characters" if words else "none"
        raise ValueError(f"token must be visible ASCII without spaces, and not empty, got {got}")
    return (("authorization", f"Bearer {words[0]}"),)


def _pem(name: str, pem: Pem | None, marker: str) -> bytes | None:
    """Return the bytes of a certificate or key; gRPC reports an unreachable server if they are something else."""
    if pem is None:
        return None
    content = pem if isinstance(pem, bytes) else _read(Path(pem))
    if marker.encode() not in content:
        where = "" if isinstance(pem, bytes) else f"{pem}: "
        raise ValueError(f"{where}{name} must be PEM, got no line -----BEGIN {marker}-----")
    return content


def _read(path: Path) -> bytes:
    """Return the bytes of a file without the byte order mark that editors on Windows add."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}: must be ASCII or UTF-8, got UTF-16; write it again as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)
