"""Print the tables of a benchmark run: per model, rates with ratios, latencies, CPU time and memory."""

from typing import Any

from results import DISTURBED_CPUS
from rich.console import Console
from rich.table import Table

Record = dict[str, Any]

MIXES = ("mix", "paced")
"""Workloads of bulk requests and one-row requests, which have figures of both."""


def print_tables(record: Record) -> None:
    """Print all tables; a `*` marks a rate that other work on the machine disturbed."""
    console = Console(width=None if Console().is_terminal else 150, highlight=False)
    for model, about in record["models"].items():
        cells = {(c["contestant"], c["workload"]): c for c in record["measured"] if c["model"] == model}
        console.print(f"\n[bold]{model}[/], {about['mflop_per_row']} MFLOP per row: medians (ratio to raw, to plain)")
        console.print(_rates(record, cells))
        console.print(_shares(record, cells))
        console.print(_costs(record, cells))
    if any(_is_disturbed(cell) for cell in record["measured"]):
        console.print(f"* other work on the machine took more than {DISTURBED_CPUS} CPUs: measure again")


def _rates(record: Record, cells: dict[tuple[str, str], Record]) -> Table:
    table = Table("", box=None, pad_edge=False)
    columns = {
        "1024x4": "1024x4 rows/s",
        "64x8": "64x8 rows/s",
        "1x32": "1x32 requests/s",
        "1x1": "1x1 requests/s",
    }
    shown = {name: title for name, title in columns.items() if name in record["workloads"]}
    for title in shown.values():
        table.add_column(title, justify="right")
    if "1x1" in shown:
        table.add_column("p50, p99 ms", justify="right")
    mixes = [name for name in MIXES if name in record["workloads"]]
    for mix in mixes:
        table.add_column(f"{mix}: p50, p99 ms", justify="right")
        table.add_column("bulk kept", justify="right")
    for name in record["contestants"]:
        words = [_rate(cells.get((name, workload))) for workload in shown]
        if "1x1" in shown:
            words.append(_latency(cells.get((name, "1x1")), ""))
        for mix in mixes:
            cell = cells.get((name, mix))
            words += [_latency(cell, "single_"), f"{cell['ratios'].get('bulk_kept', float('nan')):.2f}" if cell else ""]
        table.add_row(name, *words)
    return table


def _shares(record: Record, cells: dict[tuple[str, str], Record]) -> Table:
    """Return the table of the rates as shares of their limits, with minimum and maximum."""
    table = Table("share of the limit", box=None, pad_edge=False)
    workloads = [name for name in record["workloads"] if name not in MIXES]
    for workload in workloads:
        table.add_column(workload, justify="right")
    for name in record["contestants"]:
        table.add_row(name, *(_share(cells.get((name, workload))) for workload in workloads))
    return table


def _costs(record: Record, cells: dict[tuple[str, str], Record]) -> Table:
    """Return the table of CPU microseconds per request, start-up and memory."""
    table = Table("", box=None, pad_edge=False)
    workloads = [name for name in record["workloads"] if name not in MIXES]
    for workload in workloads:
        table.add_column(f"{workload} CPU us", justify="right")
    for title in ("ready s", "healthy s", "peak MiB", "after MiB"):
        table.add_column(title, justify="right")
    for name in record["contestants"]:
        words = [_cpu(cells.get((name, workload))) for workload in workloads]
        server = cells.get((name, "server"))
        medians = server["medians"] if server else {}
        words += [f"{medians[key]:.2f}" if server else "" for key in ("ready_s", "healthy_s")]
        words += [f"{medians[key]:.0f}" if server else "" for key in ("peak_mib", "after_mib")]
        table.add_row(name, *words)
    return table


def _rate(cell: Record | None) -> str:
    if not cell:
        return ""
    ratios = [cell["ratios"].get(f"rows_per_s_{against}") for against in ("to_raw", "to_plain")]
    shown = ", ".join("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    rate = cell["medians"]["rows_per_s"]
    return f"{rate:,.0f}{'*' * _is_disturbed(cell)} ({shown})"


def _share(cell: Record | None) -> str:
    share = cell["share"] if cell else None
    return f"{share['median']:.2f} ({share['min']:.2f} to {share['max']:.2f}) of {share['of']}" if share else ""


def _latency(cell: Record | None, prefix: str) -> str:
    return ", ".join(f"{cell['medians'][f'{prefix}{name}_ms']:.2f}" for name in ("p50", "p99")) if cell else ""


def _cpu(cell: Record | None) -> str:
    """Return the CPU microseconds per request of client and server, as text."""
    if not cell:
        return ""
    client, server = (cell["medians"][f"{side}_cpu_us_per_request"] for side in ("client", "server"))
    return f"{client:,.0f} + {server:,.0f}"


def _is_disturbed(cell: Record) -> bool:
    medians = cell["medians"]
    return bool(medians.get("other_cpus", medians.get("bulk_other_cpus", 0)) > DISTURBED_CPUS)
