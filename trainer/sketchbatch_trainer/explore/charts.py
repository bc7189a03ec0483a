"""Draws the exploration's charts with matplotlib, each small enough to be read on a phone."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import matplotlib as mpl
import matplotlib.dates
import matplotlib.image
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sketchbatch_client.evaluation.stats.intervals import wilson
from sketchbatch_client.html_page import data_url

from ..matplotlib_style import STYLE, embedded
from .figures import quantile

INK = "#111827"
COLOURS = (
    "#2563eb", "#ea580c", "#0d9488", "#c026d3", "#ca8a04", "#7c3aed", "#65a30d", "#e11d48", "#0ea5e9", "#78716c",
)  # fmt: skip

_WIDTH = 4.2  # inches: a phone shows it at four fifths, with letters of 8 pt
MOST_HILLS = 12
"""Classes; beyond it only their quartiles are drawn, in order of the median."""

_MOST_DAYS = 120  # beyond it, weeks
_BINS = 40
_NO_METADATA: Any = {"Software": None}  # the same picture gives the same bytes

By = Mapping[str, Counter[Any]]  # counts of each class, or of all together


def colours(number: int) -> list[str]:
    """One for each class; all the same where there are too many to tell apart."""
    return list(COLOURS[:number]) if number <= len(COLOURS) else [COLOURS[0]] * number


def hills(counts: By, shades: Sequence[str], *, scale: float = 1, unit: str) -> str:
    """How a number is spread over the drawings of each class, with median and quartiles: an <img> source.

    `scale` is the worth of one step of `counts`, in `unit`. The highest hundredth is not drawn.
    """
    drawn = len(counts) <= MOST_HILLS
    if not drawn:
        counts = dict(sorted(counts.items(), key=lambda each: -quantile(each[1], 0.5)))
    step = 0.62 if drawn else 0.24
    longest = max(1, max(quantile(each, 0.99) for each in counts.values()))
    width = max(1, -(-longest // _BINS))
    with mpl.rc_context({**STYLE, "axes.spines.left": False, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(_WIDTH, step * len(counts) + 0.75), layout="constrained")
        axes: Any = figure.subplots()
        for row, (each, shade) in enumerate(zip(counts.values(), shades, strict=True)):
            low, middle, high = (scale * quantile(each, share) for share in (0.25, 0.5, 0.75))
            if drawn:
                starts, heights = _hill(each, longest, width)
                axes.bar(starts * scale, -0.72 * heights, width * scale, row, align="edge", color=shade, alpha=0.28)
            axes.plot([low, high], [row, row], color=shade, linewidth=3.5, solid_capstyle="round")
            axes.plot(middle, row, "o", color=shade, markersize=7 if drawn else 5, markeredgecolor="white")
            digits = 0 if scale == 1 else 1
            text = f"{middle:.{digits}f} ({low:.{digits}f}\N{EN DASH}{high:.{digits}f})"
            axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=INK)
        axes.set_yticks(range(len(counts)), list(counts))
        axes.set_ylim(len(counts) - 0.6, -0.95 if drawn else -0.7)
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", top=not drawn, labeltop=not drawn)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(unit)
        return embedded(figure)


def bars(counts: By, order: Sequence[str], shades: Sequence[str], unit: str) -> str:
    """Drawings by name (such as a country's), most on top, stacked by class: an <img> source."""
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x", "axes.spines.left": False}):
        figure = Figure(figsize=(_WIDTH, 0.27 * len(order) + 0.95), layout="constrained")
        axes: Any = figure.subplots()
        reached = np.zeros(len(order))
        for (label, each), shade in zip(counts.items(), shades, strict=True):
            own = np.array([each[name] for name in order], float)
            axes.barh(range(len(order)), own, 0.72, reached, color=shade, label=label)
            reached += own
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(unit)
        _legend(figure, axes, len(counts))
        return embedded(figure)


def shares(hits: Counter[str], of: Counter[str], order: Sequence[str], unit: str) -> str:
    """Share by name with its 95 % interval (Wilson's), and that of all as a line: an <img> source."""
    number = np.array([of[name] for name in order], float)
    share = np.array([hits[name] for name in order], float) / number
    low, high = wilson(share, number)
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x", "axes.spines.left": False}):
        figure = Figure(figsize=(_WIDTH, 0.27 * len(order) + 0.95), layout="constrained")
        axes: Any = figure.subplots()
        overall = 100 * sum(hits.values()) / sum(of.values())
        axes.axvline(overall, color="#9ca3af", linestyle=(0, (4, 3)), linewidth=1.2, label=f"all: {overall:.1f} %")
        axes.hlines(range(len(order)), 100 * low, 100 * high, color="#93c5fd", linewidth=4)
        axes.plot(100 * share, range(len(order)), "o", color=COLOURS[0], markersize=6)
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.5, -0.5)
        axes.set_xlim(right=101)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(unit)
        _legend(figure, axes, 2)
        return embedded(figure)


def hours(counts: By, shades: Sequence[str]) -> str:
    """Drawings by hour of the day, stacked by class: an <img> source."""
    return _columns(counts, shades, [hour + 0.5 for hour in range(24)], [*range(24)], 0.82, "hour of the day (UTC)")


def days(counts: By, shades: Sequence[str]) -> str:
    """Drawings by date, or by week where there are many, stacked by class: an <img> source."""
    numbers = {
        label: Counter({date.fromisoformat(day).toordinal(): count for day, count in each.items()})
        for label, each in counts.items()
    }
    first = min(min(each) for each in numbers.values() if each)
    last = max(max(each) for each in numbers.values() if each)
    width = 1 if last - first < _MOST_DAYS else 7 * -(-(last - first) // 3650)
    starts = list(range(first, last + 1, width))
    binned = {
        label: Counter({start: sum(each[start + day] for day in range(width)) for start in starts})
        for label, each in numbers.items()
    }
    unit = {1: "date (UTC)", 7: "week (UTC)"}.get(width, f"{width // 7} weeks (UTC)")
    epoch = date(1970, 1, 1).toordinal() - width / 2  # matplotlib counts days from then
    since_1970 = [start - epoch for start in starts]
    return _columns(binned, shades, since_1970, starts, 0.9 * width, unit, has_dates=True)


def nearness(share: NDArray[np.float64], labels: Sequence[str]) -> str:
    """Whose neighbours are whose: share of each row's neighbours by class, in per cent: an <img> source."""
    side = max(3.0, 0.42 * len(labels) + 1.2)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes: Any = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=max(0.6, float(share.max())))
        for (row, column), value in np.ndenumerate(share):
            axes.text(
                column, row, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.4 else INK, fontsize=9
            )
        axes.set_xticks(range(len(labels)), labels, rotation=0 if len(labels) <= 5 else 90)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="class of its nearest neighbours", ylabel="class of the drawing")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return embedded(figure)


def picture(bitmap: NDArray[np.uint8]) -> str:
    """One bitmap, (28, 28), black on white: an <img> source of a small PNG."""
    return _png(bitmap, ("#ffffff", "#000000"), 0, 255)


def heat(values: NDArray[np.float64], shade: str, low: float) -> str:
    """A number for each pixel, (28, 28), from white over the shade to a dark one: an <img> source of a small PNG.

    The scale is its own, to the highest value; below `low`, a share of that, everything is white.
    """
    dark = tuple(0.45 * tint + 0.55 * ink for tint, ink in zip(to_rgb(shade), to_rgb(INK), strict=True))
    return _png(values, ("#ffffff", shade, dark), low * values.max(), values.max() or 1)


def _png(values: NDArray[Any], tints: Sequence[Any], low: float, high: float) -> str:
    file = io.BytesIO()
    tint = LinearSegmentedColormap.from_list("ink", tints)
    mpl.image.imsave(file, values, cmap=tint, vmin=low, vmax=high, format="png", metadata=_NO_METADATA)
    return data_url(file.getvalue(), "image/png")


def _hill(counts: Counter[int], longest: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Starts and heights of the bins from 0 to `longest`, the highest 1."""
    heights = np.zeros(longest // width + 1)
    for value, count in counts.items():
        if 0 <= value <= longest:
            heights[value // width] += count
    return np.arange(len(heights)) * width, heights / max(1, heights.max())


def _columns(
    counts: By,
    shades: Sequence[str],
    places: Sequence[float],
    keys: Sequence[int],
    width: float,
    unit: str,
    *,
    has_dates: bool = False,
) -> str:
    with mpl.rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure = Figure(figsize=(_WIDTH, 2.7), layout="constrained")
        axes: Any = figure.subplots()
        reached = np.zeros(len(keys))
        for (label, each), shade in zip(counts.items(), shades, strict=True):
            own = np.array([each[key] for key in keys], float)
            axes.bar(places, own, width, reached, color=shade, label=label)
            reached += own
        if has_dates:
            dates: Any = mpl.dates  # untyped
            locator = dates.AutoDateLocator(minticks=3, maxticks=6)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, show_offset=False))
        else:
            axes.set_xticks(range(0, 25, 3))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel=unit, ylabel="drawings")
        _legend(figure, axes, len(counts))
        return embedded(figure)


def _legend(figure: Figure, axes: Any, entries: int) -> None:
    if entries > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
