"""Looks for model files that came, changed or went while the service runs, and has them served, or not any more.

Flow of a file: seen -> seen again, unchanged -> loaded, warmed up and tried on this thread, beside all that is served
-> served, at once and for every request from then on, or refused. Flow of a model whose file went: not meant by any
request from now on -> what is queued is run -> its memory is given back.

Looks, since nothing tells of changes on NFS, nor through the links of a ConfigMap.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from ..batching.leader_follower_pool import LeaderFollowerPool
from ..errors import ModelRefused, StartError
from .artifact import digest_of
from .loader import LoadOptions, load, may_use_cuda
from .registry import ModelRegistry, RefusedFile, ServedModel
from .repository import ModelFile, find

log = structlog.get_logger()

LATE_S = 5.0
"""Seconds that a model which is not served any more is kept for requests that had found it before: they submit within
milliseconds, and messages of streams ask a full queue again every 50."""

_NICE = 10
"""How far loading stands back behind requests, as in nice(1); docs/decisions/0021 has what that does."""


class ModelWatcher:
    """Keeps `models` to what is at `path`. Use as a context manager, within that of `crew`.

    Args:
        path: As in `load_models`, which made `models`.
        options: As there.
        models: What is served; the watch alone changes it.
        crew: Runs them.
        every_s: Seconds between two looks; 0 = never looks by itself.
        late_s: Seconds that a model is kept for late requests.
    """

    def __init__(
        self,
        path: Path,
        options: LoadOptions,
        models: ModelRegistry,
        crew: LeaderFollowerPool,
        *,
        every_s: float,
        late_s: float = LATE_S,
    ) -> None:
        self._path = path
        self._options = options
        self._models = models
        self._crew = crew
        self._every_s = every_s
        self._late_s = late_s
        self._last = {model.file.path: model.file for model in models if model.file}  # seen at the last look
        self._leaving: list[tuple[ServedModel, float]] = []  # with time.monotonic seconds
        self._said: object = None  # of what cannot be done, for as long as it is the same
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model-watch", daemon=True)

    def __enter__(self) -> "ModelWatcher":
        if self._every_s:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        if self._every_s:
            self._thread.join()

    def stop(self) -> None:
        """Looks no more; what is being loaded will not be served."""
        self._stopping.set()

    def look(self) -> None:
        """Looks once. A file is loaded at the second look that finds it the same, and gone at the second without it."""
        self._unload()
        try:
            found = {file.path: file for file in find(self._path)}
        except OSError as exc:
            self._say_once(log.warning, "models cannot be looked for, what is served stays", cause=str(exc))
            return
        if not found:  # rather a volume that is not there than a wish
            self._say_once(log.warning, "no model found, what is served stays", path=str(self._path))
            return
        last, self._last = self._last, found
        for path, file in found.items():
            if not self._is_settled(file) and not self._stopping.is_set():
                if last.get(path) == file:
                    self._take(file)
                else:
                    log.info("model found", file=str(file.path))
        self._drop({*self._known()} - {*found} - {*last})

    def _watch(self) -> None:
        _stand_back(self._options)
        while not self._stopping.wait(self._every_s):
            try:
                self.look()
            except Exception:  # nobody asked; the operator must hear, and the next look is another
                log.exception("a look for models broke")

    def _known(self) -> list[Path]:
        files = [each.file for each in (*self._models, *self._models.refused)]
        return [file.path for file in files if file]

    def _is_settled(self, file: ModelFile) -> bool:
        """Whether there is nothing to do about it: it is what is served, or it was refused."""
        for refusal in self._models.refused:
            if refusal.file.path == file.path:
                return refusal.file == file
        return any(model.file == file for model in self._models)

    def _take(self, file: ModelFile) -> None:
        """Serves it in place of what its path held before, or refuses it."""
        old = next((model for model in self._models if model.file and model.file.path == file.path), None)
        started_at = time.monotonic()
        try:
            if old and digest_of(file.path) == old.artifact.digest:  # touched, or put back
                new = replace(old, file=file)
            else:
                new = load(file, self._options)
                self._check_name(new, old)
        except Exception as exc:  # also what ONNX Runtime and a failing disk come with; the operator must hear
            if file.is_unchanged():  # else it was still being written: the next look sees to it
                self._refuse(file, old, exc)
            return
        if not self._stopping.is_set():
            self._serve(new, old, load_s=round(time.monotonic() - started_at, 3))

    def _check_name(self, new: ServedModel, old: ServedModel | None) -> None:
        """One file says its name itself; requests that name no model must not hear another without notice."""
        default = self._models.default_model
        if old and old.name == default != new.name:
            raise ModelRefused(f"{new.file and new.file.path}: must be named {default!r} as before, got {new.name!r}")

    def _serve(self, new: ServedModel, old: ServedModel | None, load_s: float) -> None:
        assert new.file
        models = [*(model for model in self._models if model is not old), new]
        is_other = not old or new.batcher is not old.batcher
        if is_other:
            self._crew.add(new.batcher, polls_while_saturated=new.polls_while_saturated)
            self._models.loads["served"] += 1
        self._models.put(models, self._refused_but({new.file.path}))
        if is_other:
            log.info("model serves", load_s=load_s, is_newest=self._models.get(new.name, "") is new, **_described(new))
            self._retire([old] if old else [], "replaced")

    def _refuse(self, file: ModelFile, old: ServedModel | None, error: Exception) -> None:
        cause = str(error) if isinstance(error, StartError) else f"{file.path}: {type(error).__name__}: {error}"
        named = (old.name, old.version) if old else (file.name, file.version)
        self._models.loads["refused"] += 1
        self._models.put(self._models, [*self._refused_but({file.path}), RefusedFile(*named, file, cause)])
        log.error("model refused, what is served stays", model=named[0], version=named[1], cause=cause)

    def _drop(self, gone: set[Path]) -> None:
        """Serves no more what was loaded from these; the default model's newest version stays if it is the last."""
        if not gone:
            self._said = None
            return
        refused = self._refused_but(gone)
        leaving = [model for model in self._models if model.file and model.file.path in gone]
        newest = self._models.get("", "")
        if newest in leaving and all(model in leaving for model in self._models if model.name == newest.name):
            leaving.remove(newest)
            self._say_once(
                log.warning,
                "model kept without its file: nothing else can be the default",
                model=newest.name,
                version=newest.version,
            )
        if leaving or len(refused) < len(self._models.refused):
            self._models.put([model for model in self._models if model not in leaving], refused)
        self._retire(leaving, "removed")

    def _refused_but(self, paths: set[Path]) -> list[RefusedFile]:
        return [refusal for refusal in self._models.refused if refusal.file.path not in paths]

    def _retire(self, models: list[ServedModel], cause: str) -> None:
        for model in models:
            self._leaving.append((model, time.monotonic()))
            queued_rows = model.batcher.queued_rows
            log.info("model retired", model=model.name, version=model.version, cause=cause, queued_rows=queued_rows)

    def _unload(self) -> None:
        """Gives back the memory of models that nobody can ask any more, once their last rows are answered."""
        for model, since in list(self._leaving):
            if time.monotonic() > since + self._late_s and model.batcher.release():
                self._leaving.remove((model, since))
                self._crew.remove(model.batcher)
                log.info("model unloaded", model=model.name, version=model.version)

    def _say_once(self, say: Callable[..., Any], event: str, **fields: object) -> None:
        if self._said != (event, fields):
            self._said = (event, fields)
            say(event, **fields)


def _stand_back(options: LoadOptions) -> None:
    """Has this thread's calls wait for those of requests, on Linux, where a thread has a priority of its own.

    Not where CUDA may be used: threads that are started here, and then serve, would stand back, too.
    """
    if sys.platform == "linux" and not may_use_cuda(options):
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, min(19, os.getpriority(os.PRIO_PROCESS, me) + _NICE))


def _described(model: ServedModel) -> dict[str, str]:
    return {
        "model": model.name,
        "version": model.version,
        "provider": model.provider,
        "digest": model.artifact.digest,
    }
