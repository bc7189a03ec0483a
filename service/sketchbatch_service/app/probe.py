"""The command `python -m sketchbatch_service.probe`: asks the service beside it whether it is SERVING.

For an image's HEALTHCHECK, where there is no client and need not be a shell. Kubernetes' own probes speak gRPC.
"""

import sys
from pathlib import Path

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..settings import Settings

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # noqa: S104 - nothing listens here
"""Who listens everywhere is asked here."""


@click.command()
@click.option(
    "--address",
    envvar=["SKETCHBATCH_PROBE_ADDRESS", "SKETCHBATCH_ADDRESS"],  # where TLS is on, the former answers without
    default=Settings(model=Path()).address,
    show_envvar=True,
    show_default=True,
    help="Where the service listens, HOST:PORT, as the service was told.",
)
@click.option(
    "--limit-s", default=2.0, show_default=True, type=click.FloatRange(min=0), help="Seconds to wait for the answer."
)
def main(address: str, limit_s: float) -> None:
    """Exits with 0 if the service says SERVING; else with 1, and one line on what it said."""
    host, _, port = Settings(model=Path(), address=address).address.rpartition(":")  # refuses what the service would
    target = f"{_LOOPBACK.get(host, host)}:{port}"
    status = _status(target, limit_s)
    if status != "SERVING":
        sys.exit(f"{target}: {status}")
    click.echo(status)


def _status(target: str, limit_s: float) -> str:
    """The status of the server as a whole, or why there is none."""
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=limit_s)
        except grpc.RpcError as exc:
            return f"{exc.code().name}: {exc.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


if __name__ == "__main__":
    main()
