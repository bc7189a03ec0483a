"""Read the history of a training and draw its learning curves."""

import csv
from pathlib import Path

import numpy as np
from sketchbatch_client.evaluation.figures import BLUE, GREY, styled_figure, svg_url


def read_history(path: Path) -> dict[str, list[float]]:
    """Return the columns of a history.csv by name, one value per epoch."""
    with path.open(encoding="utf-8", newline="") as file:
        epochs = list(csv.DictReader(file))
    return {name: [float(epoch[name]) for epoch in epochs] for name in epochs[0]}


def learning_curves(history: dict[str, list[float]], *, keeps_best: bool) -> str:
    """Draw loss and accuracy by epoch and mark the epoch of the kept weights; return the source of an <img> element.

    The kept weights are those of the lowest validation loss if `keeps_best`, else those of the last epoch.
    """
    losses = history["val_loss"]
    kept_epoch = int(np.argmin(losses)) + 1 if keeps_best else len(losses)
    with styled_figure(9.6, 3.4) as figure:
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            epochs = range(1, len(losses) + 1)
            axes.axvline(kept_epoch, color="#d1d5db", linewidth=6, zorder=0, label="kept weights")
            axes.plot(epochs, history[name], "o-", color=GREY, markersize=4, label="training")
            axes.plot(epochs, history[f"val_{name}"], "o-", color=BLUE, markersize=4, label="validation")
            axes.set_title(name.capitalize(), loc="left", fontweight="bold")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
        return svg_url(figure)
