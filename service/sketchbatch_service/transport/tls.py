"""Makes gRPC's credentials from certificate files, and replaces them while the service runs.

Connections made before a replacement keep what they were made with.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from ..errors import CredentialsUnusable
from .file_reloader import FileReloader


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of a server."""

    cert: Path
    """Its certificate, then those between it and the root."""

    key: Path
    """The certificate's private key, without a passphrase."""

    client_ca: Path | None = None
    """Whose certificates clients must show; None = none are asked for."""


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """TLS as `files` say, looked at again for each new connection.

    Raises:
        CredentialsUnusable: One is missing, is no PEM, or certificate and key do not belong together.
    """
    paths = [path for path in (files.cert, files.key, files.client_ca) if path]
    watched = FileReloader(paths, lambda: _configuration(files))
    fetch: Any = watched.changed  # its None means no change, which grpc's types do not know
    return grpc.dynamic_ssl_server_credentials(watched.content, fetch, files.client_ca is not None)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    chain, key = _bytes(files.cert), _bytes(files.key)
    client_ca = _bytes(files.client_ca) if files.client_ca else None
    # gRPC itself would take anything, refuse every connection, and say nothing. A passphrase must not be asked for.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.cert, files.key, password="")
    except OSError as exc:  # an ssl.SSLError, or a file that has just gone
        raise CredentialsUnusable(
            f"{files.cert} and {files.key} must be a PEM certificate chain and its key, without a passphrase: {exc}"
        ) from exc
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError, TypeError) as exc:  # TypeError: there is more than ASCII in it
            raise CredentialsUnusable(f"{files.client_ca} must hold PEM certificates of authorities: {exc}") from exc
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=client_ca)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CredentialsUnusable(f"{path}: cannot be read: {exc.strerror}") from exc
