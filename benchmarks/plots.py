"""Plot a benchmark run, with a row of panels per model: bulk rates, one-row request rates and latencies."""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from results import RAW
from sketchbatch_client.evaluation.figures import STYLE

Cells = dict[tuple[str, str], dict[str, Any]]  # the figures of each contestant and workload

_LIMITS = ("raw64", "instant")  # the beginnings of the names of limits
_GREYS = ("#6b7280", "#9aa5b1", "#cbd5e1")
_COLOURS = ("#d97706", "#2563eb", "#1e3a8a", "#15803d", "#b91c1c", "#7c3aed", "#0891b2")
_PANELS = (  # title of each panel, and its groups of bars: title of a group -> workload, keys of the value in its cell
    (
        "rows/s, raw in process = 1",
        {"1024x4": ("1024x4", "ratios", "rows_per_s_to_raw"), "64x8": ("64x8", "ratios", "rows_per_s_to_raw")},
    ),
    (
        "one-row requests/s, plain server = 1",
        {"1x32": ("1x32", "ratios", "rows_per_s_to_plain"), "1x1": ("1x1", "ratios", "rows_per_s_to_plain")},
    ),
    (
        "p99 of a one-row request, ms",
        {"1x1": ("1x1", "medians", "p99_ms"), "with bulk": ("mix", "medians", "single_p99_ms")},
    ),
)


def plot(record: dict[str, Any], path: Path) -> None:
    """Write a PNG; each panel has a group of bars per workload, with a labelled bar per contestant.

    Limits and measurements with h2load are left out: next to their rates, the other bars would be too small to compare.
    """
    colours = _colours(name for name in record["contestants"] if not name.startswith(_LIMITS) and "@" not in name)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 2.6 * len(record["models"]) + 0.6), layout="constrained")
        grid = figure.subplots(len(record["models"]), len(_PANELS), squeeze=False)
        for row, (model, about) in zip(grid, record["models"].items(), strict=True):
            cells = {(c["contestant"], c["workload"]): c for c in record["measured"] if c["model"] == model}
            for number, (axes, (title, groups)) in enumerate(zip(row, _PANELS, strict=True)):
                # Only the first panel shows ONNX Runtime in process, which is the base of the ratios in this panel.
                shown = {name: colour for name, colour in colours.items() if number == 0 or not name.startswith(RAW)}
                _bars(axes, shown, cells, groups)
                axes.set_title(title, loc="left")
            row[0].set_ylabel(f"{model}\n{about['mflop_per_row']:.3g} MFLOP per row", fontweight="bold")
        handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
        figure.legend(handles=handles, loc="outside upper right", ncols=min(len(handles), 8), frameon=False)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _colours(contestants: Iterable[str]) -> dict[str, str]:
    """Return the colour of each contestant: a grey if it calls ONNX Runtime in process, otherwise another colour."""
    greys, others = cycle(_GREYS), cycle(_COLOURS)
    return {name: next(greys if name.startswith(RAW) else others) for name in contestants}


def _bars(axes: Axes, colours: dict[str, str], cells: Cells, groups: dict[str, tuple[str, str, str]]) -> None:
    width = 0.84 / max(1, len(colours))
    for group, (workload, part, figure) in enumerate(groups.values()):
        for number, (name, colour) in enumerate(colours.items()):
            value = cells.get((name, workload), {}).get(part, {}).get(figure)
            if value is not None:
                place = group + (number - (len(colours) - 1) / 2) * width
                bar = axes.bar(place, value, width * 0.94, color=colour)
                axes.bar_label(bar, [f"{value:.2g}"], fontsize=7, padding=2, rotation=90)
    axes.margins(y=0.15)  # room for the labels
    axes.set_xticks(range(len(groups)), list(groups))
    axes.grid(visible=False, axis="x")
