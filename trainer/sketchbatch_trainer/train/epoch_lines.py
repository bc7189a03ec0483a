"""Shows how fitting goes, epoch by epoch."""

from rich.progress import Progress

from ..progress import console
from .fit import Epoch


class EpochLines:
    """A bar of the steps of each epoch, then one line with its figures; a `training.Watcher`."""

    def __init__(self, shown: Progress, max_epochs: int) -> None:
        self._bar = shown
        self._task = shown.add_task("")
        self._max_epochs = max_epochs

    def begins(self, epochs_done: int, steps_done: int, steps: int) -> None:
        """Says so if a run that was cut off goes on."""
        if epochs_done or steps_done:
            console.print(f"goes on after {epochs_done} epochs and {steps_done} of {steps} steps")
        self._bar.reset(self._task, total=steps, completed=steps_done, description=self._title(epochs_done + 1))

    def steps_done(self, steps: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=steps)

    def epoch_done(self, epoch: Epoch) -> None:
        """Writes the line."""
        console.print(
            f"epoch {epoch.epoch:>2}  train loss {epoch.loss:.3f} accuracy {epoch.accuracy:.3f}   "
            f"validation loss {epoch.val_loss:.3f} accuracy {epoch.val_accuracy:.3f} "
            f"balanced {epoch.val_balanced_accuracy:.3f}   {epoch.seconds:.0f} s"
        )
        self._bar.reset(self._task, description=self._title(epoch.epoch + 1))

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch} of at most {self._max_epochs}"
