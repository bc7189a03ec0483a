"""Watch a repository of tiny models in a test, which calls `scan` itself and reads the log events."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_models import write_model
from sketchbatch_service.models.loader import LoadOptions, load_models
from sketchbatch_service.models.watcher import ModelWatcher
from structlog.testing import capture_logs

OPTIONS = LoadOptions(provider="cpu", threads=1)


class Watched:
    """Hold the objects of a test: the models at `path`, the watcher of these models, and their thread pool.

    The thread pool runs only after the test has entered the context `pool`.
    """

    def __init__(self, path: Path, options: LoadOptions, late_s: float) -> None:
        self.models = load_models(path, options)
        self.pool = self.models.thread_pool()
        self.watcher = ModelWatcher(path, options, self.models, self.pool, every_s=0, late_s=late_s)
        self.log: list[dict] = []

    def scan(self, times: int = 2) -> None:
        """Scan `times` times; two scans load a new file or retire the model of a removed one."""
        for _ in range(times):
            self.watcher.scan()

    def served(self) -> list[str]:
        """Return the served models as NAME/VERSION, in the order of the registry."""
        return [f"{model.name}/{model.version}" for model in self.models]

    def events(self) -> list[str]:
        """Return the log events since the previous call of `events`."""
        events = [event["event"] for event in self.log]
        self.log.clear()
        return events


@contextmanager
def watching(path: Path, options: LoadOptions = OPTIONS, *, late_s: float = 60) -> Iterator[Watched]:
    """Yield the watched models at `path`; a retired model stays loaded for `late_s` seconds."""
    with capture_logs() as log:
        watched = Watched(path, options, late_s)
        watched.log = log
        yield watched


def put(repository: Path, place: str, **model: object) -> Path:
    """Write a model file to another folder, then move the file to the folder `place` of the repository.

    Users should add files to a repository in the same way.
    """
    ready = write_model(repository.parent / "ready.onnx", **model)
    path = repository / place / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    return ready.rename(path)


def remove(repository: Path, place: str) -> None:
    """Remove the folder `place` of the repository, with its model file."""
    shutil.rmtree(repository / place)
