"""Draws the report's pictures."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sketchbatch_client.drawings.readers import Bitmaps
from sketchbatch_client.evaluation.stats.calibration import Calibration

from ..matplotlib_style import STYLE, embedded

TRAIN, VALIDATION = "#9aa5b1", "#2563eb"
RIGHT, WRONG = "#15803d", "#b91c1c"

MOST_WRITTEN = 30
"""Classes in a confusion matrix; beyond it the counts would be too small to read, and too many to draw."""


def learning_curves(history: dict[str, list[float]], kept: int) -> str:
    """Loss and accuracy by epoch, train and validation, side by side, the epoch kept marked: an <img> source."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            epochs = range(1, len(history[name]) + 1)
            axes.axvline(kept, color="#d1d5db", linewidth=6, zorder=0, label="epoch kept")
            axes.plot(epochs, history[name], "o-", color=TRAIN, markersize=4, label="train (as it learns)")
            axes.plot(epochs, history[f"val_{name}"], "o-", color=VALIDATION, markersize=4, label="validation")
            axes.set_title(name.capitalize(), loc="left", fontweight="bold")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
        return embedded(figure)


def reliability(bins: Calibration) -> str:
    """Accuracy by confidence, on the line where they are equal if the model is as sure as it is right: an <img>."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.2), layout="constrained")
        axes, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
        axes.plot([0, 1], [0, 1], color=TRAIN, linewidth=1, linestyle="--")
        axes.plot(bins.confidence, bins.accuracy, "o-", color=VALIDATION, markersize=4)
        axes.set(ylabel="share named right", xlim=(0, 1.02), ylim=(0, 1.02))
        below.bar(bins.confidence, bins.rows, width=0.045, color=TRAIN)
        below.set(xlabel="score of the label named", ylabel="drawings")
        return embedded(figure)


def confusion_matrix(confusion: NDArray[np.int64], labels: list[str]) -> str:
    """Share of each true class by predicted class, counts written in: an <img> source."""
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 0.45 * len(labels) + 1.4)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(confusion):
            ink = "white" if share[row, column] > 0.55 else "#1f2937"
            text = f"{count}\n{share[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", color=ink)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return embedded(figure)


def gallery(bitmaps: Bitmaps, captions: list[str], colour: str, columns: int = 8) -> str:
    """A grid of drawings, ink on paper, each with its caption: an <img> source."""
    rows = max(1, -(-len(bitmaps) // columns))
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.2 * columns, 1.62 * rows), layout="constrained")
        axes: Any = figure.subplots(rows, columns, squeeze=False).ravel()
        for each in axes:
            each.set_axis_off()
        for each, bitmap, caption in zip(axes, bitmaps, captions, strict=False):
            each.imshow(255 - bitmap, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            each.set_title(caption, fontsize=7.5, color=colour, pad=3)
        return embedded(figure)
