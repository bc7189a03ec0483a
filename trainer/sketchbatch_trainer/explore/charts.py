"""Draw the charts of the exploration page, small enough for a phone; each function returns the source of an image."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import matplotlib.dates
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sketchbatch_client.evaluation.figures import INK, matrix, png_url, styled_figure, svg_url
from sketchbatch_client.evaluation.stats.intervals import wilson

from .drawing_statistics import quantile, together

COLOURS = (
    "#2563eb", "#ea580c", "#0d9488", "#c026d3", "#ca8a04", "#7c3aed", "#65a30d", "#e11d48", "#0ea5e9", "#78716c",
)  # fmt: skip

MAX_HISTOGRAMS = 12
"""Largest number of classes with histograms. If there are more, a chart has only quartiles, sorted by median."""

_WIDTH = 4.2  # inches; a phone shows a chart at 4/5 of its size, with letters of 8 pt
_MAX_DAYS = 120  # longest period with one bar per day; a longer period has one bar per week
_BINS = 40

Counts = Mapping[str, Counter[Any]]  # the counter of each label


def colours(number: int) -> list[str]:
    """Return a colour for each class, or one colour for all classes if there are more classes than colours."""
    return list(COLOURS[:number]) if number <= len(COLOURS) else [COLOURS[0]] * number


def distributions(counts: Counts, shades: Sequence[str], *, scale: float = 1, unit: str) -> str:
    """Draw a histogram, the median and the quartiles of each class.

    Args:
        counts: For each class, the number of drawings by value. The value axis ends at the largest of the 99 %
            quantiles of all classes.
        shades: Colour of each class.
        scale: Factor from a value to `unit`.
        unit: Title of the value axis.
    """
    has_histograms = len(counts) <= MAX_HISTOGRAMS
    if not has_histograms:
        counts = dict(sorted(counts.items(), key=lambda each: -quantile(each[1], 0.5)))
    longest = max(1, max(quantile(each, 0.99) for each in counts.values()))
    edges = np.arange(0, longest + 2 * (width := -(-longest // _BINS)), width)
    digits = 0 if scale == 1 else 1
    with styled_figure(_WIDTH, (0.62 if has_histograms else 0.24) * len(counts) + 0.75, grid="x") as figure:
        axes = _row_axes(figure, list(counts), unit)
        for row, (each, shade) in enumerate(zip(counts.values(), shades, strict=True)):
            low, middle, high = (scale * quantile(each, share) for share in (0.25, 0.5, 0.75))
            if has_histograms:
                heights, _ = np.histogram(list(each), edges, weights=list(each.values()))
                heights = -0.72 * heights / max(1, heights.max())  # negative, because the row axis points down
                axes.bar(edges[:-1] * scale, heights, width * scale, row, align="edge", color=shade, alpha=0.28)
            axes.plot([low, high], [row, row], color=shade, linewidth=3.5, solid_capstyle="round")
            axes.plot(middle, row, "o", color=shade, markersize=7 if has_histograms else 5, markeredgecolor="white")
            text = f"{middle:.{digits}f} ({low:.{digits}f}\N{EN DASH}{high:.{digits}f})"
            axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=INK)
        axes.set_ylim(len(counts) - 0.6, -0.95 if has_histograms else -0.7)
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", top=not has_histograms, labeltop=not has_histograms)
        return svg_url(figure)


def bars(counts: Counts, order: Sequence[str], shades: Sequence[str], unit: str) -> str:
    """Draw bars for the number of drawings by name, such as a country code, stacked by class."""
    with styled_figure(_WIDTH, 0.27 * len(order) + 0.95, grid="x") as figure:
        axes = _row_axes(figure, order, unit)
        reached = np.zeros(len(order))
        for (label, each), shade in zip(counts.items(), shades, strict=True):
            values = np.array([each[name] for name in order], float)
            axes.barh(range(len(order)), values, 0.72, reached, color=shade, label=label)
            reached += values
        axes.xaxis.set_major_formatter("{x:,.0f}")
        _legend(figure, axes, len(counts))
        return svg_url(figure)


def shares(hits: Counter[str], totals: Counter[str], order: Sequence[str], unit: str) -> str:
    """Draw the share hits / totals of each name with Wilson's 95 % interval, and the overall share as a line."""
    number = np.array([totals[name] for name in order], float)
    share = np.array([hits[name] for name in order], float) / number
    low, high = wilson(share, number)
    overall = 100 * sum(hits.values()) / sum(totals.values())
    with styled_figure(_WIDTH, 0.27 * len(order) + 0.95, grid="x") as figure:
        axes = _row_axes(figure, order, unit)
        axes.axvline(overall, color="#9ca3af", linestyle=(0, (4, 3)), linewidth=1.2, label=f"all: {overall:.1f} %")
        axes.hlines(range(len(order)), 100 * low, 100 * high, color="#93c5fd", linewidth=4)
        axes.plot(100 * share, range(len(order)), "o", color=COLOURS[0], markersize=6)
        axes.set_xlim(right=101)
        _legend(figure, axes, 2)
        return svg_url(figure)


def hours(counts: Counts, shades: Sequence[str]) -> str:
    """Draw a histogram of drawings by hour of the day, stacked by class."""
    return _histogram(counts, shades, np.arange(25), "hour of the day (UTC)")


def days(counts: Counts, shades: Sequence[str]) -> str:
    """Draw a histogram of drawings by date, or by week in a long period, stacked by class."""
    since_1970 = date(1970, 1, 1).toordinal()  # matplotlib counts days from 1970-01-01
    numbers = {
        label: Counter({date.fromisoformat(day).toordinal() - since_1970: count for day, count in each.items()})
        for label, each in counts.items()
    }
    every = together(numbers)
    first, last = min(every), max(every)
    width = 1 if last - first < _MAX_DAYS else 7 * -(-(last - first) // 3650)
    unit = {1: "date (UTC)", 7: "week (UTC)"}.get(width, f"{width // 7} weeks (UTC)")
    return _histogram(numbers, shades, np.arange(first, last + 1 + width, width), unit, has_dates=True)


def neighbour_matrix(shares: NDArray[np.float64], labels: Sequence[str]) -> str:
    """Draw a matrix; a cell has the share of a class (column) among the neighbours of a class's drawings (row)."""
    texts = [[f"{share:.0%}" for share in row] for row in shares]
    titles = "class of the drawing", "class of its nearest neighbours"
    return matrix(shares / max(0.6, shares.max()), texts, labels, labels, titles)


def heat(values: NDArray[np.float64], shade: str, low: float) -> str:
    """Draw one value per pixel, (28, 28), as a colour from white over `shade` to a dark tone.

    Each picture has its own colour scale, which starts at `low` times the highest value and ends at the highest value.
    """
    dark = tuple(0.45 * tint + 0.55 * ink for tint, ink in zip(to_rgb(shade), to_rgb(INK), strict=True))
    return png_url(values, ("#ffffff", shade, dark), low * values.max(), values.max() or 1)


def _row_axes(figure: Figure, names: Sequence[str], unit: str) -> Any:
    """Return axes with one row for each name, from top to bottom."""
    axes: Any = figure.subplots()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(unit)
    return axes


def _histogram(
    counts: Counts, shades: Sequence[str], edges: NDArray[np.int64], unit: str, *, has_dates: bool = False
) -> str:
    with styled_figure(_WIDTH, 2.7, grid="y") as figure:
        axes: Any = figure.subplots()
        axes.hist(
            [list(each) for each in counts.values()],
            edges,
            weights=[list(each.values()) for each in counts.values()],
            stacked=True,
            rwidth=0.85,
            color=shades,
            label=list(counts),
        )
        if has_dates:
            dates: Any = matplotlib.dates  # matplotlib.dates has no types
            locator = dates.AutoDateLocator(minticks=3, maxticks=6)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, show_offset=False))
        else:
            axes.set_xticks(range(0, 25, 3))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel=unit, ylabel="drawings")
        _legend(figure, axes, len(counts))
        return svg_url(figure)


def _legend(figure: Figure, axes: Any, entries: int) -> None:
    if entries > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
