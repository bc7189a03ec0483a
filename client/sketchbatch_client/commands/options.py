"""The options that several verbs share, how they connect, and where they write."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..rpc.client import Client
from ..rpc.connections.credentials import Tls
from ..rpc.retries.retry_policy import RetryPolicy

out = Console(soft_wrap=True, markup=False)
err = Console(stderr=True, soft_wrap=True, markup=False)

ModelName = Annotated[str, typer.Option("--model", help="Model to ask for.", show_default="the service's default")]
ModelVersion = Annotated[str, typer.Option("--model-version", help="Its version.", show_default="the newest")]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Longest one request may take, retries included, in seconds.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Write errors only.")]

_TOKEN = "SKETCHBATCH_TOKEN"  # noqa: S105 - the variable's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where the service is and how to speak to it, as the command line says; `connecting` gives it to a verb."""

    server: Annotated[
        str,
        typer.Option(
            envvar="SKETCHBATCH_SERVER",
            help="Where the service listens: HOST:PORT, several with commas between, or a target of gRPC's such as dns:///NAME:PORT.",
            metavar="HOST:PORT",
        ),
    ] = "localhost:50051"
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS; any of the next three says so, too.")] = False
    ca: Annotated[Path | None, typer.Option(help="Who signs the server's certificate, in PEM.")] = None
    cert: Annotated[Path | None, typer.Option(help="Our own certificate, for a server that wants one, in PEM.")] = None
    key: Annotated[Path | None, typer.Option(help="Its private key, in PEM.")] = None
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the bearer token to send; or the token itself in {_TOKEN}.")
    ] = None

    insecure_token: Annotated[
        bool, typer.Option("--insecure-token", help="Send the token to another machine without TLS, too.")
    ] = False

    def open(self, *, timeout_s: float, retry: RetryPolicy = RetryPolicy()) -> Client:  # noqa: B008 - frozen
        """A client of that service; what is wrong with the options is said as typer says it."""
        is_tls = self.tls or self.ca or self.cert or self.key
        try:
            return Client(
                self.server,
                timeout_s=timeout_s,
                retry=retry,
                tls=Tls(ca=self.ca, cert=self.cert, key=self.key) if is_tls else False,
                token=None if self.token_file else os.environ.get(_TOKEN) or None,
                token_file=self.token_file,
                insecure_token=self.insecure_token,
            )
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc


def connecting(verb: Callable[..., None]) -> Callable[..., None]:
    """Makes a verb that takes `connection: Connection` take its fields as options in that place."""
    options = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in fields(Connection)
    ]

    @wraps(verb)
    def connected(**given: Any) -> None:
        connection = Connection(**{option.name: given.pop(option.name) for option in options})
        verb(**given, connection=connection)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        is_ours = parameter.annotation is Connection
        parameters += options if is_ours else [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
    # What typer reads.
    connected.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    connected.__annotations__ = {each.name: each.annotation for each in parameters}
    return connected
