"""Shows how fitting goes, epoch by epoch."""

import keras
from rich.progress import Progress

from .progress import console


class EpochLines(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """A bar of the steps of each epoch, then one line with its figures."""

    def __init__(self, shown: Progress) -> None:
        super().__init__()
        self._bar = shown
        self._task = shown.add_task("")

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        title = f"epoch {epoch + 1} of at most {self.params['epochs']}"
        self._bar.reset(self._task, total=self.params["steps"], description=title)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._bar.advance(self._task)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        figures = logs or {}
        console.print(
            f"epoch {epoch + 1:>2}  train loss {figures['loss']:.3f} accuracy {figures['accuracy']:.3f}   "
            f"validation loss {figures['val_loss']:.3f} accuracy {figures['val_accuracy']:.3f}"
        )
