"""Our service, `sketchbatch-serve`, with one and two workers, called by plain stubs and by our clients."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import grpc
from callers import STYLES, ClientTasks, ClientThreads, InferThreads, stubs
from grpc_health.v1 import health_pb2, health_pb2_grpc

from . import Peer

_SERVE = str(Path(sys.executable).parent / "sketchbatch-serve")


def command(model: Path, *flags: str) -> list[str]:
    """Return the command that serves `model` on a free port, with more `flags`."""
    return [_SERVE, "--model", str(model), "--address", "127.0.0.1:0", *flags]


def _address_in(line: str) -> str:
    """Return the address of the log event SERVING, and "" for other lines."""
    try:
        event = json.loads(line)
    except ValueError:
        return ""
    return str(event["address"]) if event["message"] == "SERVING" else ""


def _probe(address: str) -> None:
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert response.status == health_pb2.HealthCheckResponse.SERVING, response


def _missing_workers() -> str:
    shown = subprocess.run([_SERVE, "--help"], capture_output=True, text=True, check=True).stdout
    return "" if "--workers" in shown else "sketchbatch-serve has no --workers"


peer = partial(Peer, address_in=_address_in, probe=_probe)

PEERS = (
    peer(
        name="ours",
        about="sketchbatch-serve, its defaults, by plain stubs",
        connect=stubs,
        styles=tuple(STYLES),
        command=command,
        limit="instant-core",
    ),
    peer(
        name="ours-openinference",
        about="sketchbatch-serve, its defaults, by plain stubs of the Open Inference Protocol (ModelInfer)",
        connect=InferThreads,
        command=command,
        limit="instant-core",
    ),
    peer(
        name="ours-2-workers",
        about="sketchbatch-serve --workers 2, by plain stubs",
        connect=stubs,
        styles=tuple(STYLES),
        command=lambda model: command(model, "--workers", "2"),
        missing=_missing_workers,
        channels=4,  # more than workers, because each connection reaches one worker only
        limit="instant-core",
    ),
    peer(
        name="ours-client",
        about="sketchbatch-serve, its defaults, by sketchbatch_client.Client",
        connect=ClientThreads,
        command=command,
        workloads=("1024x4", "1x32", "1x1"),
    ),
    peer(
        name="ours-async-client",
        about="sketchbatch-serve, its defaults, by sketchbatch_client.AsyncClient",
        connect=ClientTasks,
        command=command,
        workloads=("1024x4", "1x32", "1x1"),
    ),
)
