"""The verbs that ask a running service about itself: model, health."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Column, Table

from ..errors import Unavailable
from ..rpc.retries.retry_policy import RetryPolicy
from .options import Connection, TimeoutS, connecting, out


@connecting
def model(
    connection: Connection,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
    timeout_s: TimeoutS = 10.0,
) -> None:
    """Describes the models being served: labels, versions, limits, provider, digest, metrics."""
    with connection.open(timeout_s=timeout_s) as client:
        models = client.models()
    if as_json:
        print(json.dumps([asdict(each) for each in models], indent=2, ensure_ascii=False))
        return
    for each in models:
        title = f"{each.name} version {each.version}{' (default)' if each.is_default else ''}"
        table = Table("", Column(overflow="fold"), title=title, title_justify="left", show_header=False, box=None)
        labels = ", ".join(each.labels[:12]) + (", ..." if len(each.labels) > 12 else "")
        table.add_row("labels", f"{len(each.labels)}: {labels}")
        table.add_row("runs on", each.provider)
        table.add_row("rows a request", f"at most {each.max_request_rows}")
        table.add_row("digest", each.digest)
        for name in ("created", "licence"):
            table.add_row(name, getattr(each, name) or "not said")
        for name, value in sorted(each.metrics.items()):
            if isinstance(value, (int, float)):
                table.add_row(name, f"{value:.4g}")
        out.print(table)


@connecting
def health(
    connection: Connection,
    service: Annotated[
        str, typer.Option(help="Service to ask about, such as sketchbatch.v1.ClassifierService.", show_default="all")
    ] = "",
    timeout_s: TimeoutS = 5.0,
) -> None:
    """Asks whether the service is ready; exits with 0 only if it says SERVING."""
    with connection.open(timeout_s=timeout_s, retry=RetryPolicy(max_attempts=1)) as client:
        try:
            status = client.health(service)
        except Unavailable:
            status = "UNREACHABLE"
    print(status)
    raise typer.Exit(0 if status == "SERVING" else 1)
