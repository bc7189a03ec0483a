"""Turns counts of windows into figures, and figures of repeats into medians and ratios; writes them.

A ratio divides neighbours in time: two contestants' figures of the same repeat. The median of the repeats is kept.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from contest import Counted

Figures = dict[str, float]

DISTURBED_CPUS = 0.15
"""CPUs that others used during a window, above which it is worth little: the ratios of 2 CPUs move by 5 %."""

BULK = "1024x4"
"""The workload that the mix's bulk is held against."""

PLAIN = "plain"
RAW, RAW_DEFAULT = "raw-", "raw-default"
"""What the names of the ways to call ONNX Runtime in process begin with, and the one with its own settings."""


def figures(counted: Counted) -> Figures:
    """One window in rates and in CPU seconds a request and a row."""
    requests, rows, took_s = counted["requests"], counted["rows"], counted["took_s"]
    found = {
        "rows_per_s": rows / took_s,
        "requests_per_s": requests / took_s,
        "p50_ms": counted["p50_ms"],
        "p99_ms": counted["p99_ms"],
        "other_cpus": counted["other_cpus"],
    }
    for side in ("client", "server"):
        cpu_s = counted[f"{side}_cpu_s"]
        found[f"{side}_cpu_us_per_request"] = cpu_s / requests * 1e6
        found[f"{side}_cpu_s_per_1000_rows"] = cpu_s / rows * 1e3
    return found


def mix_figures(bulk: Counted, single: Counted) -> Figures:
    """Bulk's and single requests' figures of the same window, each under its name."""
    found = {f"bulk_{name}": figures(bulk)[name] for name in ("rows_per_s", "other_cpus")}
    return found | {f"single_{name}": figures(single)[name] for name in ("requests_per_s", "p50_ms", "p99_ms")}


@dataclass(slots=True)
class Cell:
    """One contestant, one model, one workload: a value of each figure for every repeat, in order."""

    model: str
    workload: str
    contestant: str
    repeats: dict[str, list[float]] = field(default_factory=dict)

    def add(self, found: Figures) -> None:
        """One more repeat."""
        for name, value in found.items():
            self.repeats.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Of a figure's repeats."""
        return statistics.median(self.repeats[name])


class Results:
    """The cells of one run."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def cell(self, model: str, workload: str, contestant: str) -> Cell | None:
        """None = not measured."""
        wanted = (model, workload, contestant)
        return next((c for c in self.cells if (c.model, c.workload, c.contestant) == wanted), None)

    def add(self, model: str, workload: str, contestant: str, found: Figures) -> None:
        """One more repeat of a cell."""
        cell = self.cell(model, workload, contestant)
        if cell is None:
            cell = Cell(model, workload, contestant)
            self.cells.append(cell)
        cell.add(found)

    def raw(self, model: str, workload: str) -> Cell | None:
        """The fastest way to call ONNX Runtime in process, by its median; None = none was measured."""
        raws = [c for c in self.cells if (c.model, c.workload) == (model, workload) and c.contestant.startswith(RAW)]
        return max(raws, key=lambda cell: cell.median("rows_per_s"), default=None)

    def ratios(self, cell: Cell) -> Figures:
        """What the cell is held against: raw and the plain server; for the mix its own bulk alone."""
        plain = self.cell(cell.model, cell.workload, PLAIN)
        if "bulk_rows_per_s" in cell.repeats:
            found = _ratios("to_plain", cell, plain, ["single_p50_ms", "single_p99_ms", "bulk_rows_per_s"])
            if alone := self.cell(cell.model, BULK, cell.contestant):
                found["bulk_kept"] = median_ratio(cell.repeats["bulk_rows_per_s"], alone.repeats["rows_per_s"])
            return found
        return {
            **_ratios("to_raw", cell, self.raw(cell.model, cell.workload), ["rows_per_s"]),
            **_ratios("to_raw_default", cell, self.cell(cell.model, cell.workload, RAW_DEFAULT), ["rows_per_s"]),
            **_ratios("to_plain", cell, plain, ["rows_per_s", "p50_ms", "p99_ms"]),
        }

    def as_json(self) -> list[dict[str, Any]]:
        """Every cell: medians, ratios, and the repeats that they come from."""
        written = []
        for cell in self.cells:
            raw = self.raw(cell.model, cell.workload)
            written.append(
                {
                    "model": cell.model,
                    "workload": cell.workload,
                    "contestant": cell.contestant,
                    "raw": raw.contestant if raw else None,
                    "ratios": rounded(self.ratios(cell)),
                    "medians": rounded({name: cell.median(name) for name in cell.repeats}),
                    "repeats": {name: list(rounded(dict(enumerate(v))).values()) for name, v in cell.repeats.items()},
                }
            )
        return written


def median_ratio(values: Iterable[float], bases: Iterable[float]) -> float:
    """The median over the repeats of value / base."""
    return statistics.median(value / base for value, base in zip(values, bases, strict=True))


def rounded(found: dict[Any, float]) -> dict[Any, float]:
    """Four digits that count: more would be noise."""
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def _ratios(against: str, cell: Cell, base: Cell | None, names: list[str]) -> Figures:
    """Of the figures `names` that the cell has."""
    if base is None:
        return {}
    return {
        f"{name}_{against}": median_ratio(cell.repeats[name], base.repeats[name])
        for name in names
        if name in cell.repeats
    }
