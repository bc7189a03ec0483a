"""Create gRPC server credentials from certificate files, and replace them when the files change.

Connections keep the certificate with which they were opened.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from ..errors import CredentialsUnusable
from .file_reloader import FileReloader, read_credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of a server."""

    cert: Path  # the server certificate, followed by the intermediate certificates
    key: Path  # the private key of the certificate, without a passphrase
    client_ca: Path | None = None  # authorities of the clients' certificates; None = clients need no certificate


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return TLS credentials; gRPC checks `files` for changes at each new connection.

    Raise CredentialsUnusable if a file is missing or not PEM, or if certificate and key do not belong together.
    """
    paths = [path for path in (files.cert, files.key, files.client_ca) if path]
    reloader = FileReloader(paths, lambda: _configuration(files))
    fetch: Any = reloader.reload_if_changed  # Any: grpc's types do not allow None, which means no change
    return grpc.dynamic_ssl_server_credentials(reloader.content, fetch, files.client_ca is not None)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
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
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError, TypeError) as exc:  # TypeError: not ASCII
            raise CredentialsUnusable(f"{files.client_ca} must hold PEM certificates of authorities: {exc}") from exc
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=client_ca)
