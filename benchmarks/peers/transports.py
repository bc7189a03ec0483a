"""Our service on the transport `aio`, and servers without a model, whose rates are the limits of the transports."""

import sys
from functools import partial
from pathlib import Path

from callers import STYLES, stubs

from . import Peer, ours, plain

_SERVER = str(Path(__file__).resolve().parent.parent / "instant_server.py")


_instant = partial(
    Peer,
    connect=stubs,
    styles=tuple(STYLES),
    address_in=plain.address_in,
    probe=plain.probe,
    workloads=("1024x4", "64x8", "1x32", "1x1"),
    computes=False,
)

PEERS = (
    ours.peer(
        name="ours-aio",
        about="sketchbatch-serve --transport aio, by plain stubs; `ours` uses the transport core",
        connect=stubs,
        styles=tuple(STYLES),
        command=lambda model: ours.command(model, "--transport", "aio"),
        limit="instant-aio",
    ),
    _instant(
        name="instant-core",
        about="the server of the transport core; reads a request and answers with fixed bytes",
        command=lambda model: [sys.executable, _SERVER, "core"],
    ),
    _instant(
        name="instant-aio",
        about="a bare grpc.aio.server; reads a request and answers with fixed bytes",
        command=lambda model: [sys.executable, _SERVER, "aio"],
    ),
)
