"""Read the history of a training and draw a learning curve."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from sketchbatch_client.evaluation.figures import BLUE, GREY, ORANGE, styled_figure, svg_url

_SPLITS = {"val": "validation", "test": "test"}


def read_history(path: Path) -> dict[str, list[float]]:
    """Return the columns of a history.csv by name, one value per epoch."""
    with path.open(encoding="utf-8", newline="") as file:
        epochs = list(csv.DictReader(file))
    return {name: [float(epoch[name]) for epoch in epochs] for name in epochs[0]}


def has_split(history: dict[str, list[float]], split: str) -> bool:
    """Return whether the drawings of the split "val" or "test" were measured in any epoch.

    Older versions did not measure test drawings, and a training on all drawings has none for validation or test.
    """
    return not np.isnan(history.get(f"{split}_loss", [np.nan])).all()


def curve_names(history: dict[str, list[float]]) -> list[str]:
    """Return the names of the curves that `learning_curve` draws."""
    return ["training", *(name for split, name in _SPLITS.items() if has_split(history, split))]


def learning_curve(history: dict[str, list[float]], name: str, *, keeps_best: bool) -> str:
    """Draw "loss" or "accuracy" by epoch and mark the epoch of the kept weights; return the source of an <img> element.

    The kept weights come from the epoch with the lowest validation loss if `keeps_best`, else from the last epoch.
    """
    losses = history["val_loss"]
    kept_epoch = int(np.argmin(losses)) + 1 if keeps_best else len(losses)
    epochs = range(1, len(losses) + 1)
    with styled_figure(4.6, 3.2) as figure:
        axes: Any = figure.subplots()
        axes.axvline(kept_epoch, color="#d1d5db", linewidth=6, zorder=0, label="kept weights")
        axes.plot(epochs, history[name], "o-", color=GREY, markersize=4, label="training")
        if has_split(history, "val"):
            axes.plot(epochs, history[f"val_{name}"], "o-", color=BLUE, markersize=4, label=_SPLITS["val"])
        if has_split(history, "test"):
            axes.plot(epochs, history[f"test_{name}"], "s--", color=ORANGE, markersize=4, label=_SPLITS["test"])
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=9)
        return svg_url(figure)
