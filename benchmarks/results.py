"""Turn the counts of windows into figures, and the figures of repeats into medians and ratios.

A ratio divides the figures of two contestants in the same repeat. The published ratio is the median over the repeats.
The share of a limit is such a ratio, published with its minimum and maximum.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contest import Counted

Figures = dict[str, float]

DISTURBED_CPUS = 0.15
"""A window is marked if other processes use more CPUs than this number; on 2 CPUs, this changes ratios by 5 %."""

BULK = "1024x4"
"""The workload with which the bulk requests of the mix are compared."""

PLAIN = "plain"
RAW, RAW_DEFAULT = "raw-", "raw-default"
"""Prefix of the peers that call ONNX Runtime in process, and the peer with its default settings."""


def figures(counted: Counted) -> Figures:
    """Return the rates and latencies of one window, and the CPU time per request and per 1,000 rows."""
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
    """Return the figures of one window of the mix, separately for the bulk requests and the single requests."""
    found = {f"bulk_{name}": figures(bulk)[name] for name in ("rows_per_s", "other_cpus")}
    return found | {f"single_{name}": figures(single)[name] for name in ("requests_per_s", "p50_ms", "p99_ms")}


@dataclass(slots=True)
class Cell:
    """The figures of one contestant on one model and workload, with a value per repeat."""

    model: str
    workload: str
    contestant: str
    repeats: dict[str, list[float]] = field(default_factory=dict)

    def add(self, found: Figures) -> None:
        """Add the figures of one repeat."""
        for name, value in found.items():
            self.repeats.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """Return the median of a figure over the repeats."""
        return statistics.median(self.repeats[name])


class Results:
    """The cells of one benchmark run: one for each model, workload and contestant.

    `limits` names, by contestant, the peers whose lower rate is the limit of the contestant.
    """

    def __init__(self, limits: Mapping[str, Sequence[str]] | None = None) -> None:
        self.cells: list[Cell] = []
        self._limits = limits or {}

    def cell(self, model: str, workload: str, contestant: str) -> Cell | None:
        """Return the cell of a model, workload and contestant; None = not measured."""
        wanted = (model, workload, contestant)
        return next((c for c in self.cells if (c.model, c.workload, c.contestant) == wanted), None)

    def add(self, model: str, workload: str, contestant: str, found: Figures) -> None:
        """Add one repeat to a cell."""
        cell = self.cell(model, workload, contestant)
        if cell is None:
            cell = Cell(model, workload, contestant)
            self.cells.append(cell)
        cell.add(found)

    def raw(self, model: str, workload: str) -> Cell | None:
        """Return the fastest peer that calls ONNX Runtime in process, by median; None = none was measured."""
        raws = [c for c in self.cells if (c.model, c.workload) == (model, workload) and c.contestant.startswith(RAW)]
        return max(raws, key=lambda cell: cell.median("rows_per_s"), default=None)

    def ratios(self, cell: Cell) -> Figures:
        """Return the cell's ratios to raw and to the plain server; for the mix, to the plain server and to `BULK`."""
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

    def share(self, cell: Cell) -> dict[str, Any] | None:
        """Return the cell's rate as a share of its limit, the lowest rate of the peers that limit it.

        The result has the name of this peer, and the median, minimum and maximum over the repeats; None = no such peer
        was measured, or the workload is the mix.
        """
        names = self._limits.get(cell.contestant, ())
        limits = [found for name in names if (found := self.cell(cell.model, cell.workload, name))]
        if "rows_per_s" not in cell.repeats or not limits:
            return None
        limit = min(limits, key=lambda each: each.median("rows_per_s"))
        pairs = zip(cell.repeats["rows_per_s"], limit.repeats["rows_per_s"], strict=True)
        shares = sorted(rate / most for rate, most in pairs)
        found = {"median": statistics.median(shares), "min": shares[0], "max": shares[-1]}
        return {"of": limit.contestant, **rounded(found)}

    def as_json(self) -> list[dict[str, Any]]:
        """Return medians, ratios and repeats of every cell."""
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
                    "share": self.share(cell),
                    "medians": rounded({name: cell.median(name) for name in cell.repeats}),
                    "repeats": {name: list(rounded(dict(enumerate(v))).values()) for name, v in cell.repeats.items()},
                }
            )
        return written


def median_ratio(values: Iterable[float], bases: Iterable[float]) -> float:
    """Return the median of value / base over the repeats."""
    return statistics.median(value / base for value, base in zip(values, bases, strict=True))


def rounded(found: dict[Any, float]) -> dict[Any, float]:
    """Round every value to four significant digits."""
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def _ratios(against: str, cell: Cell, base: Cell | None, names: list[str]) -> Figures:
    """Return the cell's ratios to `base`, for each figure in `names` that the cell has."""
    if base is None:
        return {}
    return {
        f"{name}_{against}": median_ratio(cell.repeats[name], base.repeats[name])
        for name in names
        if name in cell.repeats
    }
