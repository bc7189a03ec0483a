"""Define the settings: one frozen dataclass, read once at start; flag > environment > default.

Every field is a flag (`--max-batch-rows`) and a variable (`SKETCHBATCH_MAX_BATCH_ROWS`), and has a row in
docs/settings.md. The metadata of the field have the help text of the flag.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from .address import HostPort, socket_path
from .version_policy import VersionPolicy


class Seconds(click.FloatRange):
    """A range of seconds without NaN, which `click.FloatRange` accepts because NaN is not below the minimum."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is not a number.", param, ctx)
        return seconds


class LocalPath(click.Path):
    """A path on this machine; `pathlib` would make a folder `s3:` of a URL."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"must be a path on this machine, got the URL {value}: mount or copy it.", param, ctx)
        return super().convert(value, param, ctx)


SHIPPED_MODELS = Path(__file__).parent / "shipped_models"
"""Repository with the default model, which is part of the package. In a checkout, it links to `models/`."""

_MAX_PROCESSES = 1024
"""Most workers, and most threads of a worker: above the CPUs of today's machines, and low enough to start."""

_Workers = Annotated[int, click.IntRange(1, _MAX_PROCESSES)]
_Threads = Annotated[int, click.IntRange(0, _MAX_PROCESSES)]
_BatchRows = Annotated[int, click.IntRange(0, 1_000_000)]
# The service sets gRPC's message limit to 2 x 784 bytes per row, which must fit into 31 bits.
_RequestRows = Annotated[int, click.IntRange(1, 1_000_000)]
_QueuedRows = Annotated[int, click.IntRange(1, 1_000_000_000)]
_Connections = Annotated[int, click.IntRange(1, 1_000_000)]  # gRPC ends the process at 2**31 - 1
_Calls = Annotated[int, click.IntRange(1, 2**31 - 1)]  # gRPC stores its options in 31 bits
_UpToADay = Annotated[float, Seconds(0, 86_400)]
_ConnectionAge = Annotated[float, Seconds(0, 2_000_000)]  # gRPC stores milliseconds in 31 bits
_Value = TypeVar("_Value")
_File = Annotated[Path | None, LocalPath(path_type=Path)]


def _setting(default: _Value, help_text: str) -> _Value:
    """Return a field of `Settings`, which type checkers take for its default."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one service process."""

    model: Annotated[Path, LocalPath(path_type=Path)] = _setting(
        SHIPPED_MODELS,
        "Model to serve: one model.onnx, or a repository NAME/VERSION/model.onnx. Default: the model bear-cat-dog, "
        "which the package contains.",
    )
    versions: str = _setting(
        "latest:2",
        "Versions of each model that a repository loads: latest:N = the N newest that fit, all, or numbers such as "
        "3,5; NAME=... sets those of one model, as in latest:2;bear=3,5.",
    )
    allow_label_changes: bool = _setting(
        False,
        "Activate a file that replaces a served file of the same version and has other labels, instead of refusing it.",
    )
    allow_unstable_scores: bool = _setting(
        False,
        "Serve a model whose scores depend on the other rows of a batch, differ between two calls or are not finite "
        "for some drawings, with a warning, instead of refusing it.",
    )
    watch_models_s: _UpToADay = _setting(
        5.0, "Seconds between two scans of --model for new, changed and removed files; 0 = never."
    )
    wait_for_model: bool = _setting(
        False, "Start without a model and report NOT_SERVING until --model holds one, instead of ending with an error."
    )
    default_model: str = _setting(
        "", "Model that answers requests without a model name; empty = the first name in alphabetical order."
    )
    address: str = _setting(
        "0.0.0.0:50051",
        "Address to listen on, HOST:PORT or unix:PATH; port 0 = a free port, which the log event SERVING contains.",
    )
    transport: Literal["auto", "aio", "core"] = _setting(
        "auto",
        "gRPC server: aio works with every grpcio; core is faster, but uses a private interface of grpcio; auto takes "
        "core with the grpcio versions that it was tested with.",
    )
    provider: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "Where models run: auto uses CUDA if it works and the CPU otherwise; cuda fails at start without CUDA."
    )
    cuda_graphs: Literal["auto", "on", "off"] = _setting(
        "auto",
        "CUDA graphs: auto captures one per batch size if the model allows it; on fails at start if it does not.",
    )
    cuda_tf32: bool = _setting(
        False, "On CUDA, multiply float32 values in TF32: faster, but scores may differ from the CPU's by 1e-2."
    )
    workers: _Workers = _setting(1, "Processes that serve the port, each with its own connections, models and queues.")
    threads: _Threads = _setting(
        0, "CPUs for model calls, one call per CPU; 0 = all that the process may use, divided among the workers."
    )
    max_batch_rows: _BatchRows = _setting(
        0,
        "Maximum rows in one model call; requests are merged and split to fit. 0 = on a CPU as many rows as take "
        "about 5 ms, on CUDA 4096.",
    )
    max_request_rows: _RequestRows = _setting(
        16384,
        "Maximum rows in one request; larger requests are rejected with INVALID_ARGUMENT. A model with more classes "
        "than 512 allows fewer: the scores of one request take 32 MiB at most.",
    )
    max_queued_rows: _QueuedRows = _setting(
        65536, "Maximum rows that wait for one model; more are rejected with RESOURCE_EXHAUSTED, and streams pause."
    )
    lame_duck_s: _UpToADay = _setting(
        2.0, "Seconds after SIGTERM in which Check reports NOT_SERVING and calls are still accepted."
    )
    drain_s: _UpToADay = _setting(
        30.0, "Seconds that accepted requests may take after --lame-duck-s, or after SIGINT; a second signal ends them."
    )
    tls_cert: _File = _setting(
        None, "PEM certificate chain of the service; needs --tls-key; reloaded when it changes. Default: plain text."
    )
    tls_key: _File = _setting(None, "PEM private key of --tls-cert, without a passphrase.")
    tls_client_ca: _File = _setting(
        None, "PEM certificates of authorities: every client must present a certificate that one of them signed."
    )
    token_file: _File = _setting(
        None, "Bearer tokens, one per line: every call except health checks must carry one; reloaded when it changes."
    )
    probe_address: str = _setting(
        "", "Address that answers only health checks, in plain text, HOST:PORT: Kubernetes' probes do not support TLS."
    )
    max_connections: _Connections = _setting(
        900,
        "Maximum connections per worker; further ones are closed at once. Lowered to fit into the limit of open files.",
    )
    max_calls_per_connection: _Calls = _setting(
        10_000, "Maximum open calls per connection; the client delays further ones."
    )
    max_receive_s: _UpToADay = _setting(
        120.0,
        "Seconds in which the whole request of a unary call must arrive, or the call ends with DEADLINE_EXCEEDED. 0 = "
        "no limit.",
    )
    max_connection_age_s: _ConnectionAge = _setting(
        0.0, "Seconds after which a client must reconnect; its open calls can finish. 0 = never."
    )
    metrics_address: str = _setting(
        "", "Address that answers Prometheus over HTTP, HOST:PORT; port 0 = a free port. Empty = no metrics."
    )
    otlp_endpoint: str = _setting(
        "",
        "OTLP collector for traces of Classify calls, http://HOST:4318; needs the extra `traces`. Empty = no traces.",
    )
    reflection: bool = _setting(True, "Answer gRPC reflection, so that grpcurl needs no .proto file.")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "Lowest level of the events in the log.")

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_main_address()
        self._check_versions()
        if self.probe_address:
            _check_address(self.probe_address, "--probe-address")
        if self.metrics_address:
            _check_address(self.metrics_address, "--metrics-address")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise click.BadParameter("must be set together with --tls-key", param_hint="--tls-cert")
        if self.tls_client_ca and not self.tls_cert:
            raise click.BadParameter("needs --tls-cert and --tls-key", param_hint="--tls-client-ca")
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise click.BadParameter(
                f"must be http://HOST:PORT or https://..., got {self.otlp_endpoint!r}", param_hint="--otlp-endpoint"
            )
        if self.max_queued_rows < self.max_request_rows:
            raise click.BadParameter(
                f"must be at least --max-request-rows ({self.max_request_rows}), got {self.max_queued_rows}",
                param_hint="--max-queued-rows",
            )

    def _check_numbers(self) -> None:
        """Check the ranges also of settings that a Python program passes, which click has not checked."""
        for name, annotation in get_type_hints(Settings, include_extras=True).items():
            if isinstance(number := _click_type(annotation), (click.IntRange, click.FloatRange)):
                _check_number(getattr(self, name), number, _flag(name))

    def _check_main_address(self) -> None:
        try:
            is_socket = bool(socket_path(self.address))
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="--address") from exc
        if not is_socket:
            _check_address(self.address, "--address")
        elif self.workers > 1:
            raise click.BadParameter(
                f"must be HOST:PORT with --workers {self.workers}: several processes cannot share unix:PATH",
                param_hint="--address",
            )

    def _check_versions(self) -> None:
        try:
            VersionPolicy.parse(self.versions)
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="--versions") from exc


def _check_number(value: object, number: Any, flag: str) -> None:
    try:
        number.convert(str(value), None, None)  # as text, because `int` would accept 2.5
    except click.BadParameter as exc:
        raise click.BadParameter(exc.message, param_hint=flag) from exc


def _check_address(address: str, flag: str) -> None:
    try:
        HostPort.parse(address)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint=flag) from exc


Command = Callable[..., Any]


def options(command: Command) -> Command:
    """Add one click option per field of `Settings` to `command`."""
    types = get_type_hints(Settings, include_extras=True)
    for each in reversed(fields(Settings)):
        flag = _flag(each.name)
        command = click.option(
            f"{flag}/--no-{flag[2:]}" if types[each.name] is bool else flag,
            type=_click_type(types[each.name]),
            envvar=f"SKETCHBATCH_{each.name.upper()}",
            show_envvar=True,
            show_default=each.default != SHIPPED_MODELS,  # the help text names the model instead of its long path
            default=each.default,
            help=each.metadata["help"],
        )(command)
    return command


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _click_type(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    return next(iter(getattr(annotation, "__metadata__", ())), annotation)
