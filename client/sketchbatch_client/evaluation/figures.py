"""Draw charts and pictures of a page with matplotlib; each drawing function returns the source of an <img> element."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..html_page import data_url
from .quality import MeasuredThreshold
from .stats.calibration import Calibration
from .stats.metrics import Confusion, confused_pairs
from .stats.rejection import RiskCoverage

try:
    import matplotlib as mpl
    import matplotlib.image
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
except ImportError as exc:
    raise ImportError("charts need matplotlib: pip install 'sketchbatch-client[charts]'") from exc

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "text.parse_math": False,  # a label may contain dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "svg.fonttype": "path",
    "svg.hashsalt": "sketchbatch",  # makes equal charts byte-identical
}
"""matplotlib settings of all charts."""

INK, GREY, BLUE, ORANGE = "#111827", "#9aa5b1", "#2563eb", "#e69f00"  # blue and orange differ for every kind of sight

MAX_WRITTEN_CLASSES = 20  # most classes in a confusion matrix with written counts, which must stay large enough to read

_MAX_TITLES_WIDTH = 4.2  # largest width of all column titles side by side in inches: a page has 6.6 next to the text
_MAX_PERCENT_CLASSES = 12  # most classes whose cells have room for a percentage below the count
_UPRIGHT_FROM_CLASSES = 7  # fewest classes whose column labels are rotated
_CURVE_POINTS = 200  # more are not visible
_TEXT_WIDTH = 0.04  # least difference of coverage between two dots with a text
_NO_METADATA: Any = {"Software": None}  # makes equal pictures byte-identical


@contextmanager
def styled_figure(width: float, height: float, *, grid: str = "both") -> Iterator[Figure]:
    """Provide a figure of that size in inches; `grid` is "both", "x", "y" or "none"."""
    has_grid = grid != "none"
    with mpl.rc_context({**STYLE, "axes.grid": has_grid, "axes.grid.axis": grid if has_grid else "both"}):
        yield Figure(figsize=(width, height), layout="constrained")


def svg_url(figure: Figure) -> str:
    """Return a figure as an SVG; call it inside `styled_figure`."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return data_url(file.getvalue(), "image/svg+xml")


def png_url(values: NDArray[Any], colours: Sequence[Any], low: float, high: float) -> str:
    """Return a PNG with one pixel per value, in a colour scale from `low` to `high`."""
    file = io.BytesIO()
    scale = LinearSegmentedColormap.from_list("scale", colours)
    mpl.image.imsave(file, values, cmap=scale, vmin=low, vmax=high, format="png", metadata=_NO_METADATA)
    return data_url(file.getvalue(), "image/png")


def picture(bitmap: NDArray[np.uint8]) -> str:
    """Return a PNG of one bitmap, black ink on white paper."""
    return png_url(bitmap, ("#ffffff", "#000000"), 0, 255)


def reliability(calibration: Calibration) -> str:
    """Draw two charts above each other: the accuracy in each bin of scores, and the number of drawings in each bin."""
    with styled_figure(4.4, 4.2) as figure:
        axes, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
        axes.plot(calibration.confidence, calibration.accuracy, "o-", color=BLUE, markersize=4)
        axes.set(ylabel="share correct", xlim=(0, 1.02), ylim=(0, 1.02))
        below.bar(calibration.confidence, calibration.rows, width=0.045, color=GREY)
        below.set(xlabel="score of the predicted label", ylabel="drawings")
        return svg_url(figure)


def risk_coverage(curve: RiskCoverage, thresholds: Sequence[MeasuredThreshold]) -> str:
    """Draw the accuracy against the coverage, with a dot for each threshold that keeps a drawing."""
    points = curve.points(_CURVE_POINTS)
    with styled_figure(4.4, 3.4) as figure:
        axes: Any = figure.subplots()
        marker = "o" if len(points) == 1 else None  # all scores are equal
        axes.plot(curve.coverage[points], curve.accuracy[points], color=BLUE, marker=marker)
        last_text = 2.0
        for each in thresholds:
            if each.accuracy is None:
                continue
            axes.plot(each.coverage, each.accuracy, "o", color=ORANGE, markersize=5)
            if last_text - each.coverage >= _TEXT_WIDTH:
                last_text, place = each.coverage, (each.coverage, each.accuracy)
                text = f"{each.stored.coverage:.10g}"
                axes.annotate(text, place, xytext=(4, 3), textcoords="offset points", fontsize=8)
        lowest = float(curve.accuracy[points].min())
        axes.set(xlabel="share of the drawings kept (coverage)", ylabel="accuracy of the kept drawings")
        axes.set(xlim=(0, 1.02), ylim=(max(0.0, lowest - 0.1 * (1 - lowest) - 0.01), 1.01))
        return svg_url(figure)


def confusion_matrix(confusion: Confusion, labels: Sequence[str]) -> str:
    """Draw the matrix with a count in each cell; if there are too many classes, draw only the most confused ones."""
    return _matrix_url(Matrix.of_confusion(confusion, labels))


def matrix(
    shares: NDArray[np.float64], texts: Any, rows: Sequence[str], columns: Sequence[str], axis_titles: tuple[str, str]
) -> str:
    """Draw a matrix of shares with a text in each cell; a darker cell has a larger share."""
    return _matrix_url(Matrix(shares=shares, texts=texts, rows=rows, columns=columns, axis_titles=axis_titles))


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix of shares with a text in each cell; a darker cell has a larger share."""

    shares: NDArray[np.float64]  # (rows, columns), 0 to 1
    texts: Any  # (rows, columns)
    rows: Sequence[str]  # titles of the rows
    columns: Sequence[str]
    axis_titles: tuple[str, str]  # of the rows, and of the columns

    @classmethod
    def of_confusion(cls, confusion: Confusion, labels: Sequence[str]) -> "Matrix":
        """Return the matrix of the classes of `shown_classes`; a row without drawings is left out.

        The title of the columns states how many drawings of the rows have a prediction that is not shown.
        """
        shown = shown_classes(confusion)
        rows = [index for index in shown if confusion[index].any()]
        counts = confusion[np.ix_(rows, shown)]
        shares = counts / confusion[rows].sum(axis=1, keepdims=True)
        texts = np.char.mod("%d", counts).astype(object)
        if len(shown) <= _MAX_PERCENT_CLASSES:
            texts = texts + np.char.mod("\n%.0f %%", 100 * shares).astype(object)
        texts[counts == 0] = ""
        names = [labels[index] for index in rows], [labels[index] for index in shown]
        left_out = int(confusion[rows].sum() - counts.sum())
        predicted = f"predicted (without other classes: {left_out:,})" if left_out else "predicted"
        return cls(shares=shares, texts=texts, rows=names[0], columns=names[1], axis_titles=("true", predicted))

    @property
    def is_upright(self) -> bool:
        """Whether the titles of the columns are rotated."""
        return len(self.columns) >= _UPRIGHT_FROM_CLASSES or self._title_width * len(self.columns) > _MAX_TITLES_WIDTH

    @property
    def _title_width(self) -> float:
        """Width of the longest column title in inches."""
        return 0.1 * max(map(len, self.columns))

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches, with space for the titles."""
        cell = 0.55 if len(self.columns) <= _MAX_PERCENT_CLASSES else 0.38
        margin = 0.6 + 0.085 * max(map(len, self.rows))
        below = 0.6 + 0.085 * max(map(len, self.columns)) if self.is_upright else 0.6
        width = cell if self.is_upright else max(cell, self._title_width)
        return max(3.4, width * len(self.columns) + margin), max(2.6, cell * len(self.rows) + below)

    def draw(self, axes: Any) -> None:
        """Draw the matrix on axes of a figure."""
        axes.imshow(self.shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(self.shares):
            ink = "white" if share > 0.55 else INK
            axes.text(column, row, self.texts[row][column], ha="center", va="center", color=ink, fontsize=9)
        axes.set_xticks(range(len(self.columns)), self.columns, rotation=90 if self.is_upright else 0)
        axes.set_yticks(range(len(self.rows)), self.rows)
        axes.set(ylabel=self.axis_titles[0], xlabel=self.axis_titles[1])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)


def _matrix_url(shown: Matrix) -> str:
    with styled_figure(*shown.size, grid="none") as figure:
        shown.draw(figure.subplots())
        return svg_url(figure)


def confusion_overview(confusion: Confusion) -> str:
    """Return the whole matrix as a picture with one pixel per cell.

    The colour shows the square root of the share of the row, so that small shares are visible.
    """
    shares = np.sqrt(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))
    return png_url(shares, ("#ffffff", "#1e3a8a"), 0, 1)


def shown_classes(confusion: Confusion) -> list[int]:
    """Return the class indices that occur, or if there are too many, the classes of the most confused pairs."""
    occurs = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1)).tolist()
    if len(occurs) <= MAX_WRITTEN_CLASSES:
        return occurs
    shown: set[int] = set()
    for pair in confused_pairs(confusion, confusion.size):
        if len(shown.union(pair)) > MAX_WRITTEN_CLASSES:
            break
        shown.update(pair)
    return sorted(shown)
