"""The peers that a benchmark compares: each module of this package sets `PEERS`, a tuple of `Peer`.

A benchmark finds new modules of this package without registration. A peer can use any protocol; its input is uint8
(rows, 28, 28), and its output is float32 (rows, classes).
"""

import importlib
import pkgutil
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bitmaps = NDArray[np.uint8]  # (rows, 28, 28), 0 = paper, 255 = ink
Scores = NDArray[np.float32]  # (rows, classes)

LIMIT_OF_MODEL = "raw64"
"""Name of the peer that shows the limit of the model: ONNX Runtime in process, 64 rows per call. Its name lacks the
prefix `raw-`, because it does not answer requests one by one."""


class Stop(Protocol):
    """Signals the end of a window; a `threading.Event`."""

    def is_set(self) -> bool: ...

    def wait(self) -> object: ...


class Caller(Protocol):
    """Sends the load generator's requests to one peer."""

    def classify(self, bitmaps: Bitmaps) -> Scores:
        """Return the scores of one request."""

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        """Cycle through `requests` with `in_flight` of them in flight until `stop`; return each request's seconds.

        Returns after the last answers. A failed request raises an exception, so that no error counts as an answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server, or ONNX Runtime in process, that a benchmark measures: one row of the result tables."""

    name: str
    """Name of the peer in tables and in `--contestants`."""

    about: str
    """Description of the peer, with the settings that matter for speed."""

    connect: Callable[[str, "Peer"], Caller]
    """Creates the caller in the load generator's process, from the address of the server; without a server, from the
    path of the model."""

    styles: tuple[str, ...] = ()
    """Ways to keep requests in flight, the default first; NAME@STYLE selects another way."""

    channels: int = 1
    """Number of connections that carry the requests."""

    command: Callable[[Path], list[str]] | None = None
    """Returns the command that serves a model on a free port; None = the peer runs in the load generator's process."""

    address_in: Callable[[str], str] | None = None
    """Returns the address from the line that the server prints when it is ready, and "" for other lines."""

    probe: Callable[[str], None] | None = None
    """Checks that the server at an address is healthy, and returns when the check has passed."""

    missing: Callable[[], str] = lambda: ""
    """Returns why the peer cannot be measured on this machine; "" = it can."""

    workloads: tuple[str, ...] = ()
    """The workloads that are measured on the peer; () = all workloads."""

    computes: bool = True
    """Whether the answers are the scores of the model; False = the peer runs no model and answers at once; its
    rate is the upper limit for a server."""

    limit: str = ""
    """Name of the peer that answers at once through the same gRPC server; "" = there is none."""

    @property
    def style(self) -> str:
        """STYLE of the peer's name NAME@STYLE, or the first of `styles` if the name has none; "" = no styles exist."""
        return self.name.partition("@")[2] or next(iter(self.styles), "")

    @property
    def limits(self) -> tuple[str, ...]:
        """Return the names of the peers whose lower rate is the limit of this peer; () = the peer itself is a limit."""
        if not self.computes or self.name == LIMIT_OF_MODEL:
            return ()
        return (LIMIT_OF_MODEL, self.limit) if self.limit else (LIMIT_OF_MODEL,)

    def takes(self, workload: str) -> bool:
        """Return whether a workload is measured on the peer."""
        return not self.workloads or workload in self.workloads


_REFERENCES = ("raw", "plain")
"""Modules of the peers that are the base of ratios."""


def find_peers() -> dict[str, Peer]:
    """Return every peer by name: those of `_REFERENCES`, then the others in the order of their module names."""
    files = sorted({found.name for found in pkgutil.iter_modules(__path__)} - set(_REFERENCES))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in (*_REFERENCES, *files)]
    return {peer.name: peer for module in modules for peer in module.PEERS}


def find_peer(name: str, *, channels: int = 1) -> Peer:
    """Return the peer NAME, NAME@STYLE or NAME+FLAG=VALUE (a flag for its server) with at least `channels` channels.

    Raises:
        ValueError: There is no such peer, or the peer has no such style, or the peer has no server for the flag.
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
    limit = f"{peer.limit}@{style}" if peer.limit and style else peer.limit
    missing = _missing_h2load if style == "h2load" else peer.missing
    return replace(peer, name=name, channels=max(channels, peer.channels), limit=limit, missing=missing)


def _missing_h2load() -> str:
    return "" if shutil.which("h2load") else "h2load is not on the PATH (Debian: nghttp2-client)"


def _with_flags(peer: Peer, flags: list[str]) -> Callable[[Path], list[str]]:
    command = peer.command
    if command is None:
        raise ValueError(f"{peer.name} has no server to give {', '.join(flags)} to")
    return lambda model: [*command(model), *(f"--{flag}" for flag in flags)]
