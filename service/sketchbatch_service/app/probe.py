"""Define the command `python -m sketchbatch_service.probe`, which checks the health of the service on this machine.

An image's HEALTHCHECK runs it: the image contains no client and possibly no shell. Kubernetes' own probes use gRPC.
"""

import sys

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..address import loopback
from ..settings import Seconds, Settings


@click.command()
@click.option(
    "--address",
    envvar=["SKETCHBATCH_PROBE_ADDRESS", "SKETCHBATCH_ADDRESS"],  # with TLS, only the first accepts plain text
    default=Settings().address,
    show_envvar=True,
    show_default=True,
    help="Address that the service listens on, HOST:PORT or unix:PATH, as in the settings of the service.",
)
@click.option("--limit-s", default=2.0, show_default=True, type=Seconds(0, 86_400), help="Seconds to wait.")
def main(address: str, limit_s: float) -> None:
    """Exit with 0 if health reports SERVING; otherwise print the status in one line and exit with 1."""
    target = loopback(Settings(address=address).address)
    status = _status(target, limit_s)
    if status != "SERVING":
        sys.exit(f"{target}: {status}")
    click.echo(status)


def _status(target: str, limit_s: float) -> str:
    """Return the status of the server as a whole, or the error of the call."""
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=limit_s)
        except grpc.RpcError as exc:
            return f"{exc.code().name}: {exc.details()}"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
