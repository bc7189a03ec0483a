"""Choose the transport: `core` with the versions of grpcio that it was tested with, and `aio` with all others."""

import math
from collections.abc import Sequence
from typing import Literal

import grpc
import structlog

from ..errors import TransportUnusable
from .interface import Authenticator, Server

log = structlog.get_logger()

Transport = Literal["aio", "core"]

CORE_GRPCIO = frozenset({"1.85.0", "1.85.1", "1.85.3"})
"""Versions of grpcio with which the contract tests passed on `core`: `make test-grpcio` ran them on each version."""


def choose(wanted: Literal["auto", "aio", "core"], *, warns: bool = True) -> Transport:
    """Return the transport to use with the installed grpcio; log one warning if `auto` means the slower `aio`."""
    if wanted != "auto":
        return wanted
    if grpc.__version__ in CORE_GRPCIO:
        return "core"
    if warns:
        log.warning(
            "transport aio, which is slower: core was not tested with this version of grpcio",
            grpcio=grpc.__version__,
            tested=sorted(CORE_GRPCIO),
            to_do="install a tested version, or set --transport core at your own risk",
        )
    return "aio"


def create_server(
    transport: Transport,
    options: Sequence[tuple[str, int]] = (),
    authenticate: Authenticator | None = None,
    *,
    max_receive_s: float = math.inf,
) -> Server:
    """Create a server; raise TransportUnusable if the installed grpcio lacks the interface that `core` needs.

    A call with one request ends with DEADLINE_EXCEEDED if its request does not arrive within `max_receive_s` seconds.
    """
    if transport == "aio":
        from .aio_server import AioServer

        return AioServer(options, authenticate, max_receive_s=max_receive_s)
    try:
        from .core_server import CoreServer

        return CoreServer(options, authenticate, max_receive_s=max_receive_s)
    except (ImportError, AttributeError, TypeError) as exc:
        raise TransportUnusable(
            f"--transport core does not work with grpcio {grpc.__version__}, use auto or aio: {exc}"
        ) from exc
