"""Create gRPC server credentials from certificate files, and replace them when the files change.

Connections keep the certificate with which they were opened. The times of expiry are those of the files in use.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from ..certificate_expiry import earliest_expiry
from ..errors import CredentialsUnusable
from .file_reloader import FileReloader, read_credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of a server."""

    cert: Path  # the server certificate, followed by the intermediate certificates
    key: Path  # the private key of the certificate, without a passphrase
    client_ca: Path | None = None  # authorities of the clients' certificates; None = clients need no certificate


class ServerTls:
    """TLS of a server; gRPC checks the files for changes at each new connection. Thread-safe.

    The constructor raises CredentialsUnusable if a file is missing or not PEM, or if certificate and key do not belong
    together.
    """

    def __init__(self, files: TlsFiles) -> None:
        paths = [path for path in (files.cert, files.key, files.client_ca) if path]
        self._reloader = FileReloader(paths, lambda: _read(files))
        fetch: Any = self._fetch  # Any: grpc's types do not allow None, which means no change
        initial = self._reloader.content.configuration
        self.credentials = grpc.dynamic_ssl_server_credentials(initial, fetch, files.client_ca is not None)

    @property
    def expiries(self) -> dict[str, float]:
        """When the first certificate of each file in use expires, in seconds since the epoch, by the file's setting."""
        return self._reloader.content.expiries

    @property
    def reload_failures(self) -> int:
        """The number of failed attempts to read changed files."""
        return self._reloader.failures

    @property
    def is_stale(self) -> bool:
        """Return whether a changed file could not be read, so that the previous content is in use."""
        return self._reloader.is_stale

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        changed = self._reloader.reload_if_changed()
        return changed.configuration if changed else None


@dataclass(frozen=True, slots=True)
class _Certificates:
    """What was read from the files of a server."""

    configuration: grpc.ServerCertificateConfiguration
    expiries: dict[str, float]  # seconds since the epoch by setting


def _read(files: TlsFiles) -> _Certificates:
    chain, key = read_credentials(files.cert), read_credentials(files.key)
    client_ca = read_credentials(files.client_ca) if files.client_ca else None
    # gRPC would accept any bytes and then reject every connection without a log line.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password="")  # "" prevents a prompt for the passphrase
    except OSError as exc:  # an ssl.SSLError, or a file that was just removed
        raise CredentialsUnusable(
            f"{files.cert} and {files.key} must be a PEM certificate chain and its key, without a passphrase: {exc}"
        ) from exc
    expiries = {"tls_cert": _expiry(files.cert, chain)}
    if files.client_ca and client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError, TypeError) as exc:  # TypeError: not ASCII
            raise CredentialsUnusable(f"{files.client_ca} must hold PEM certificates of authorities: {exc}") from exc
        expiries["tls_client_ca"] = _expiry(files.client_ca, client_ca)
    configuration = grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=client_ca)
    return _Certificates(configuration, expiries)


def _expiry(path: Path, pem: bytes) -> float:
    try:
        return earliest_expiry(pem)
    except ValueError as exc:
        raise CredentialsUnusable(f"{path} must hold certificates with a time of expiry: {exc}") from exc
