"""What can be measured: each file here holds one peer, or variants of one, and is found by being here.

A file sets `PEERS`, a tuple of `Peer`. Whatever answers the same question, uint8 (rows, 28, 28) in and float32
(rows, classes) out, can be one, by any protocol.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bitmaps = NDArray[np.uint8]  # (rows, 28, 28), 0 = paper, 255 = ink
Scores = NDArray[np.float32]  # (rows, classes)


class Stop(Protocol):
    """Says when a window ends; a `threading.Event`."""

    def is_set(self) -> bool: ...

    def wait(self) -> object: ...


class Caller(Protocol):
    """How the load generator asks one peer."""

    def classify(self, bitmaps: Bitmaps) -> Scores:
        """One request, answered."""

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        """Asks `requests` in turn, over and over, `in_flight` at once, until `stop`; then waits for what is under way.

        Returns each request's seconds. A request that fails raises: no error is ever counted as an answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One line of the table."""

    name: str
    """As in the table and in `--contestants`."""

    about: str
    """What it is, with the settings that matter to its speed."""

    connect: Callable[[str, "Peer"], Caller]
    """Makes the caller, in the load generator's process, from the server's address; without one, from the model."""

    styles: tuple[str, ...] = ()
    """Ways in which its caller can keep requests in flight, the usual one first; NAME@STYLE asks for another."""

    channels: int = 1
    """Connections that requests are spread over."""

    command: Callable[[Path], list[str]] | None = None
    """The words that start its server on a free port with a model; None = it runs in the load generator's process."""

    address_in: Callable[[str], str] | None = None
    """The address in a line that the server prints once it is ready, on stdout or stderr; "" = not that line."""

    probe: Callable[[str], None] | None = None
    """Asks the address whether the server is well, and returns when it says so."""

    missing: Callable[[], str] = lambda: ""
    """Why it cannot be measured here; "" = it can."""

    workloads: tuple[str, ...] = ()
    """Names of those it takes part in; () = all."""

    @property
    def style(self) -> str:
        """As its name asks, or else the usual one; "" = it has none."""
        return self.name.partition("@")[2] or next(iter(self.styles), "")

    def takes(self, workload: str) -> bool:
        """Whether it takes part."""
        return not self.workloads or workload in self.workloads


_REFERENCES = ("raw", "plain")
"""Files of those that the others are held against."""


def find_peers() -> dict[str, Peer]:
    """Every peer of every file here, by name: the references, then the others by the names of their files."""
    files = sorted({found.name for found in pkgutil.iter_modules(__path__)} - set(_REFERENCES))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in (*_REFERENCES, *files)]
    return {peer.name: peer for module in modules for peer in module.PEERS}


def find_peer(name: str, *, channels: int = 1) -> Peer:
    """The one of that name, or of NAME@STYLE, with at least so many channels; NAME+FLAG=VALUE gives its server a flag.

    Raises:
        ValueError: There is none, or it has no such style or no server.
    """
    peers = find_peers()
    base, _, style = name.partition("@")
    base, *flags = base.split("+")
    if base not in peers:
        raise ValueError(f"no contestant {base!r}; there are: {', '.join(peers)}")
    peer = peers[base]
    if style and style not in peer.styles:
        raise ValueError(f"{base}@ must be one of {', '.join(peer.styles) or 'no styles at all'}, got {style!r}")
    if flags:
        peer = replace(peer, command=_with_flags(peer, flags))
    return replace(peer, name=name, channels=max(channels, peer.channels))


def _with_flags(peer: Peer, flags: list[str]) -> Callable[[Path], list[str]]:
    command = peer.command
    if command is None:
        raise ValueError(f"{peer.name} has no server to give {', '.join(flags)} to")
    return lambda model: [*command(model), *(f"--{flag}" for flag in flags)]
