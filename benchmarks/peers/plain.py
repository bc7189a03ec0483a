"""The plain grpcio server of `plain_server.py`, which implements our contract and is called by the same stubs."""

import sys
from pathlib import Path

import numpy as np
from callers import STYLES, StubThreads, stubs

from . import Peer

_SERVER = str(Path(__file__).resolve().parent.parent / "plain_server.py")


def probe(address: str) -> None:
    """Classify one row as a health check, for a server without a health service."""
    StubThreads(address, PEERS[0]).classify(np.full((1, 28, 28), 128, np.uint8))


def address_in(line: str) -> str:
    """Return the address that a server prints as a line of its own, and "" for other lines."""
    return line.strip() if line.startswith("127.0.0.1:") else ""


PEERS = (
    Peer(
        name="plain",
        about="sync grpc.server, 10 threads, one default InferenceSession, session.run for each request",
        connect=stubs,
        styles=tuple(STYLES),
        command=lambda model: [sys.executable, _SERVER, str(model)],
        address_in=address_in,
        probe=probe,
    ),
)
