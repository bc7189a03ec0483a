"""What an operator can set: one frozen dataclass, read once at start; flag > environment > default.

Every field is a flag (`--max-batch-rows`) and a variable (`SKETCHBATCH_MAX_BATCH_ROWS`), and has a row in
docs/settings.md.
"""

import ast
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import click

_Count = Annotated[int, click.IntRange(min=1)]
_RequestRows = Annotated[int, click.IntRange(1, 1_000_000)]  # gRPC counts bytes in 31 bits
_CountOrAuto = Annotated[int, click.IntRange(min=0)]
_File = Annotated[Path | None, click.Path(path_type=Path)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one service process."""

    model: Annotated[Path, click.Path(path_type=Path)]
    """What to serve: one model.onnx, or a repository NAME/VERSION/model.onnx, every version of it."""

    watch_models_s: Annotated[float, click.FloatRange(0, 86_400)] = 5.0
    """Seconds between two looks at --model for files that came, changed or went while it serves. 0 = never."""

    default_model: str = ""
    """Name that answers when a request names none; empty = the first by name."""

    address: str = "0.0.0.0:50051"
    """Where to listen, HOST:PORT; port 0 takes a free one, and the log's SERVING line says which."""

    provider: Annotated[str, click.Choice(["auto", "cpu", "cuda"])] = "auto"
    """Where models run: auto takes CUDA where it works and the CPU elsewhere; cuda refuses to start on the CPU."""

    cuda_graphs: Annotated[str, click.Choice(["auto", "on", "off"])] = "auto"
    """CUDA graphs: auto captures one for each batch size where the model allows it; on refuses to start without."""

    cuda_tf32: bool = False
    """On CUDA, let float32 models multiply in TF32: faster, and scores may differ from the CPU's by 1e-2."""

    workers: _Count = 1
    """Processes on the port, each a whole service with its own connections, models and queue."""

    threads: _CountOrAuto = 0
    """CPUs for model calls, one call on each at a time; 0 = all that may be used, shared by the workers."""

    max_batch_rows: _CountOrAuto = 0
    """Most rows in one model call; requests are merged and split to it. 0 = some 5 ms' worth on a CPU, 4096 on CUDA."""

    max_request_rows: _RequestRows = 16384
    """Most rows in one request; more are refused with INVALID_ARGUMENT."""

    max_queued_rows: _Count = 65536
    """Most rows waiting for each model; more are refused with RESOURCE_EXHAUSTED, and streams are not read on."""

    lame_duck_s: Annotated[float, click.FloatRange(min=0)] = 2.0
    """Seconds after SIGTERM in which calls are still taken while health says NOT_SERVING, so that clients move away."""

    drain_s: Annotated[float, click.FloatRange(min=0)] = 30.0
    """Seconds that requests already accepted get to finish after that, or after SIGINT; a second signal ends them."""

    tls_cert: _File = None
    """PEM certificate chain of the service, with --tls-key; read again when it changes. None = plain text."""

    tls_key: _File = None
    """PEM private key of --tls-cert, without a passphrase."""

    tls_client_ca: _File = None
    """PEM certificates of authorities: clients must show a certificate that one of them signed."""

    token_file: _File = None
    """Bearer tokens, one a line: every call but health checks must bring one; read again when it changes."""

    probe_address: str = ""
    """Where to answer health checks, and nothing else, in plain text, HOST:PORT: Kubernetes' probes know no TLS."""

    max_connections: _Count = 900
    """Connections that each worker keeps; further ones are closed at once. 1,024 open files are the usual limit."""

    max_calls_per_connection: _Count = 10_000
    """Calls under way on one connection; a client's further ones wait on its side."""

    max_connection_age_s: Annotated[float, click.FloatRange(min=0)] = 0.0
    """Seconds after which a client is asked to connect anew, its calls under way unharmed; 0 = never."""

    metrics_address: str = ""
    """Where to answer Prometheus over HTTP, HOST:PORT; port 0 takes a free one. Empty = nowhere."""

    otlp_endpoint: str = ""
    """Where to send traces of Classify calls (OTLP), http://HOST:4318; needs the extra `traces`. Empty = nowhere."""

    reflection: bool = True
    """Answer gRPC reflection, so that grpcurl needs no .proto file."""

    log_level: Annotated[str, click.Choice(["debug", "info", "warning", "error"])] = "info"
    """Least important events written to the log."""

    def __post_init__(self) -> None:
        _check_address(self.address, "--address")
        if self.probe_address:
            _check_address(self.probe_address, "--probe-address")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise click.BadParameter("goes with --tls-key: both or neither", param_hint="--tls-cert")
        if self.tls_client_ca and not self.tls_cert:
            raise click.BadParameter("needs --tls-cert and --tls-key", param_hint="--tls-client-ca")
        if self.metrics_address:
            _check_address(self.metrics_address, "--metrics-address")
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise click.BadParameter(
                f"must be http://HOST:PORT or https://..., got {self.otlp_endpoint!r}", param_hint="--otlp-endpoint"
            )
        if self.max_queued_rows < self.max_request_rows:
            raise click.BadParameter(
                f"must be at least --max-request-rows ({self.max_request_rows}), got {self.max_queued_rows}",
                param_hint="--max-queued-rows",
            )


def _check_address(address: str, flag: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"must be HOST:PORT, PORT 0..65535, got {address!r}", param_hint=flag)


Command = Callable[..., Any]


def options(command: Command) -> Command:
    """Gives `command` one click option for each field of `Settings`, its docstring as the help text."""
    return reduce(lambda wrapped, option: option(wrapped), reversed(_options()), command)


def _options() -> list[Callable[[Command], Command]]:
    kinds = get_type_hints(Settings, include_extras=True)
    docs = _field_docstrings()
    made: list[Callable[[Command], Command]] = []
    for field in fields(Settings):
        flag = f"--{field.name.replace('_', '-')}"
        kind = kinds[field.name]
        default = {"required": True} if field.default is MISSING else {"default": field.default}
        made.append(
            click.option(
                f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
                type=next(iter(getattr(kind, "__metadata__", ())), kind),
                envvar=f"SKETCHBATCH_{field.name.upper()}",
                show_envvar=True,
                show_default=True,
                help=docs[field.name],
                **default,
            )
        )
    return made


def _field_docstrings() -> dict[str, str]:
    """The string under each field of `Settings`, which Python itself does not keep."""
    body = ast.parse(inspect.getsource(Settings)).body[0].body  # type: ignore[attr-defined]  # a ClassDef
    return {
        ast.unparse(field.target): doc.value.value for field, doc in pairwise(body) if isinstance(field, ast.AnnAssign)
    }
