"""Define what the subcommands share: options, the opening of a client, and the consoles for stdout and stderr."""

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer
from rich.console import Console

from ..drawings.passed_over import PassedOverList
from ..output_file import local_path
from ..rpc.async_client import AsyncClient
from ..rpc.client import Client
from ..rpc.connections.credentials import Tls
from ..rpc.retries.retry_policy import RetryPolicy

_AnyClient = TypeVar("_AnyClient", Client, AsyncClient)

out = Console(soft_wrap=True, markup=False)
err = Console(stderr=True, soft_wrap=True, markup=False)


def not_nan(number: float | None) -> float | None:
    """Check the value of an option: NaN is not below the minimum, so some versions of typer accept it."""
    if number is not None and math.isnan(number):
        raise typer.BadParameter(f"must be a number, got {number}")
    return number


ModelName = Annotated[str, typer.Option("--model", help="Name of the model.", show_default="the service's default")]
ModelVersion = Annotated[str, typer.Option("--model-version", help="Version of the model.", show_default="the newest")]
TimeoutS = Annotated[
    float,
    typer.Option(
        min=0.1,
        callback=not_nan,
        help="Longest time for one request with its retries, in seconds; inf = no limit. A service that has not "
        "responded yet gets five attempts at most.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Write only errors and warnings to stderr.")]

_TOKEN = "SKETCHBATCH_TOKEN"  # noqa: S105 - the name of an environment variable, not a secret


INCOMPLETE = 3  # exit code: finished, but rows were rejected, or files that may have drawings were not read
IgnoreOthers = Annotated[
    bool,
    typer.Option("--ignore-others", help="Accept that files which may have drawings are not read."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """The connection options of the command line; `connecting` adds them to a subcommand."""

    server: Annotated[
        str,
        typer.Option(
            envvar="SKETCHBATCH_SERVER",
            help="Address of the service: HOST:PORT, several separated by commas, or a gRPC target such as "
            "dns:///NAME:PORT or unix:PATH.",
            metavar="HOST:PORT",
        ),
    ] = "localhost:50051"
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS; implied by --ca, --cert and --key.")] = False
    ca: Annotated[
        Path | None,
        typer.Option(parser=local_path, help="PEM file of the authorities that sign the server's certificate."),
    ] = None
    cert: Annotated[
        Path | None, typer.Option(parser=local_path, help="PEM file of the client certificate, for mutual TLS.")
    ] = None
    key: Annotated[Path | None, typer.Option(parser=local_path, help="PEM file of the private key of --cert.")] = None
    token_file: Annotated[
        Path | None,
        typer.Option(parser=local_path, help=f"File with the bearer token; {_TOKEN} may hold the token itself."),
    ] = None
    insecure_token: Annotated[
        bool, typer.Option("--insecure-token", help="Send the token to another machine even without TLS.")
    ] = False
    gzip: Annotated[
        bool, typer.Option("--gzip", help="Compress requests and responses: for slow networks; it costs CPU time.")
    ] = False

    def open(self, *, timeout_s: float, retry: RetryPolicy = RetryPolicy()) -> Client:  # noqa: B008 - it is frozen
        """Open a client. Raises typer.BadParameter if the options are invalid."""
        return self.open_as(Client, timeout_s=timeout_s, retry=retry)

    def open_as(self, kind: type[_AnyClient], *, timeout_s: float, retry: RetryPolicy) -> _AnyClient:
        """Open a client of one of the two classes. Raises typer.BadParameter if the options are invalid."""
        is_tls = self.tls or self.ca or self.cert or self.key
        try:
            return kind(
                self.server,
                timeout_s=timeout_s,
                retry=retry,
                tls=Tls(ca=self.ca, cert=self.cert, key=self.key) if is_tls else False,
                token=None if self.token_file else os.environ.get(_TOKEN) or None,
                token_file=self.token_file,
                insecure_token=self.insecure_token,
                gzip=self.gzip,
            )
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass of options, such as ConnectionOptions, by an option for each field."""
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = cast(type[Any], parameter.annotation)
            parameters += map(_as_option, fields(parameter.annotation))
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def connected(**given: Any) -> None:
        options = {
            name: group(**{each.name: given.pop(each.name) for each in fields(group)}) for name, group in groups.items()
        }
        command(**given, **options)

    # Typer reads these two attributes.
    connected.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    connected.__annotations__ = {each.name: each.annotation for each in parameters}
    return connected


def counted(number: int, name: str) -> str:
    """Return a number with the name of what it counts, such as "1 row" and "2,000 rows"."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def report_passed_over(files: PassedOverList, *, ignores_others: bool) -> bool:
    """Print which files may have drawings and were not read; return whether there are none, or a user accepts them."""
    if not files.count_with_drawings or ignores_others:
        return True
    err.print(f"not read: {files.describe()}; --ignore-others accepts this")
    return False


def _as_option(field: Field[Any]) -> inspect.Parameter:
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
