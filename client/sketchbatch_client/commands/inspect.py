"""The subcommands `model` and `health`, which inspect a running service."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Column, Table

from ..errors import Unavailable
from ..label_names import listed
from ..rpc.retries.retry_policy import RetryPolicy
from ..strict_json import encode
from .options import ConnectionOptions, TimeoutS, connecting, err, out

_LABELS_SHOWN = 12


@connecting
def model(
    connection: ConnectionOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON instead of tables.")] = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Describe the served models: labels, versions, limits, provider, digest and metrics.

    Example: sketchbatch model --server localhost:50051

    Exit codes: 0 = the models are listed, 1 = the service did not respond.
    """
    with connection.open(timeout_s=timeout_s) as client:
        models = client.models()
    if as_json:
        fields = [asdict(each) for each in models]
        print(encode([{name: each[name] for name in each if name != "training_digests"} for each in fields], indent=2))
        return
    for each in models:
        title = f"{each.name} version {each.version}{' (default)' if each.is_default else ''}"
        table = Table("", Column(overflow="fold"), title=title, title_justify="left", show_header=False, box=None)
        table.add_row("labels", f"{len(each.labels)}: {listed(each.labels, _LABELS_SHOWN)}")
        table.add_row("scores", each.score_kind or "unknown")
        table.add_row("provider", each.provider)
        table.add_row("rows per request", f"at most {each.max_request_rows}")
        for name in ("digest", "created", "licence"):
            table.add_row(name, getattr(each, name) or "unknown")
        for name, value in sorted(each.metrics.items()):
            if isinstance(value, (int, float)):
                table.add_row(name, f"{value:,.0f}" if value == int(value) else f"{value:.4g}")
        if each.rejection:
            table.add_row("unknown drawings", f"AUROC {each.rejection.auroc:.4g}")
            for own in each.rejection.thresholds:
                effect = f"accuracy {own.accuracy:.4g}, unknown rejected {own.unknown_rejected:.4g}"
                table.add_row(f"coverage {own.coverage:.10g}", f"score {own.score:.4g}: {effect}")
        out.print(table)


@connecting
def health(
    connection: ConnectionOptions,
    service: Annotated[
        str, typer.Option(help="gRPC service, such as sketchbatch.v1.ClassifierService.", show_default="all")
    ] = "",
    timeout_s: TimeoutS = 5.0,
) -> None:
    """Print the health of the service: SERVING, NOT_SERVING, SERVICE_UNKNOWN or UNREACHABLE; stderr has the reason.

    Of several servers, the first one that responds is asked; to check each server, run the command for each.

    Example: sketchbatch health --server localhost:50051

    Exit codes: 0 = SERVING, 1 = any other status.
    """
    with connection.open(timeout_s=timeout_s, retry=RetryPolicy(max_attempts=1)) as client:
        try:
            status = client.health(service)
        except Unavailable as exc:
            err.print(f"sketchbatch: {exc}")
            status = "UNREACHABLE"
    print(status)
    raise typer.Exit(0 if status == "SERVING" else 1)
