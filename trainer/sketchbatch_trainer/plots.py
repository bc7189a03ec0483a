"""Draws the report's pictures with matplotlib, each as an SVG that can be embedded in a page."""

import base64
import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sketchbatch_client.readers import Bitmaps

TRAIN, VALIDATION = "#9aa5b1", "#2563eb"
RIGHT, WRONG = "#15803d", "#b91c1c"

_MOST_WRITTEN = 30  # classes; beyond it the counts would be too small to read, and too many to draw

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "svg.fonttype": "path",
    "svg.hashsalt": "sketchbatch",  # the same picture gives the same bytes
}


def learning_curves(history: dict[str, list[float]]) -> str:
    """Loss and accuracy by epoch, train and validation, side by side: an <img> source."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            epochs = range(1, len(history[name]) + 1)
            kept = int(np.argmin(history["val_loss"])) + 1
            axes.axvline(kept, color="#d1d5db", linewidth=6, zorder=0, label="epoch kept")
            axes.plot(epochs, history[name], "o-", color=TRAIN, markersize=4, label="train (with dropout)")
            axes.plot(epochs, history[f"val_{name}"], "o-", color=VALIDATION, markersize=4, label="validation")
            axes.set_title(name.capitalize(), loc="left", fontweight="bold")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
        return _embedded(figure)


def confusion_matrix(confusion: NDArray[np.int64], labels: list[str]) -> str:
    """Share of each true class by predicted class, counts written in: an <img> source."""
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 0.45 * len(labels) + 1.4)
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(confusion if len(labels) <= _MOST_WRITTEN else np.empty((0, 0))):
            ink = "white" if share[row, column] > 0.55 else "#1f2937"
            text = f"{count}\n{share[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=ink)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return _embedded(figure)


def gallery(bitmaps: Bitmaps, captions: list[str], colour: str, columns: int = 8) -> str:
    """A grid of drawings, ink on paper, each with its caption: an <img> source."""
    rows = max(1, -(-len(bitmaps) // columns))
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.2 * columns, 1.48 * rows), layout="constrained")
        axes: Any = figure.subplots(rows, columns, squeeze=False).ravel()
        for each in axes:
            each.set_axis_off()
        for each, bitmap, caption in zip(axes, bitmaps, captions, strict=False):
            each.imshow(255 - bitmap, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            each.set_title(caption, fontsize=8, color=colour, pad=3)
        return _embedded(figure)


def _embedded(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
