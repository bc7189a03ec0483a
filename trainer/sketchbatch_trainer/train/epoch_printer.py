"""Print the progress of a training, epoch by epoch."""

import math

from rich.progress import Progress

from ..progress import console
from .training_loop import EpochMetrics


class EpochPrinter:
    """A `training.TrainingListener` that shows a bar for the steps of each epoch, then prints the epoch's metrics."""

    def __init__(self, progress: Progress, max_epochs: int) -> None:
        self._progress = progress
        self._task = progress.add_task("")
        self._max_epochs = max_epochs

    def on_start(self, epochs_done: int, steps_done: int, steps: int) -> None:
        """Start the progress bar, and print the position of a resumed training."""
        if epochs_done or steps_done:
            console.print(f"resumes after {epochs_done} epochs and {steps_done} of {steps} steps")
        self._progress.reset(self._task, total=steps, completed=steps_done, description=self._title(epochs_done + 1))

    def on_step(self, steps_done: int) -> None:
        """Advance the progress bar."""
        self._progress.update(self._task, completed=steps_done)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Print the metrics of the finished epoch, and start the bar of the next epoch."""
        parts = [f"epoch {metrics.epoch:>2}  train loss {metrics.loss:.3f} accuracy {metrics.accuracy:.3f}"]
        if not math.isnan(metrics.val_accuracy):  # NaN = there are no drawings for validation
            parts.append(
                f"validation loss {metrics.val_loss:.3f} accuracy {metrics.val_accuracy:.3f} "
                f"balanced {metrics.val_balanced_accuracy:.3f}"
            )
        console.print("   ".join([*parts, f"{metrics.seconds:.0f} s"]))
        self._progress.reset(self._task, description=self._title(metrics.epoch + 1))

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch} of at most {self._max_epochs}"
