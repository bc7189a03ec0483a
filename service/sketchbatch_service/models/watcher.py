"""Scan for model files that were added, changed or removed, and replace the served models accordingly.

Flow of a new file: found -> found unchanged by the next scan -> loaded, warmed up and checked on this thread, while the
served models run -> activated for all later requests, or refused. Flow of a removed file: not found by two scans ->
later requests do not find its model -> the queued rows run -> the model is unloaded. If a new version is activated and
the version policy then excludes an older one, the older one is retired like the model of a removed file.

The module scans because NFS and the links of a ConfigMap give no notice of a change.
"""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import structlog

from ..background import Component, ComponentName, keep_running
from ..batching.leader_follower_pool import LeaderFollowerPool
from ..errors import StartError
from .artifact import digest_of
from .loader import LoadOptions, load, may_use_cuda
from .registry import ExcludedFile, ModelRegistry, RefusedFile, ServedModel
from .replacement import check_replacement
from .repository import ModelFile, find
from .selection import select, unmet

log = structlog.get_logger()

LATE_S = 5.0
"""Seconds for which a retired (replaced or removed) model stays loaded, for requests that had found it before. Most
requests submit their rows within milliseconds; a message of a stream retries a full queue every 50 ms."""

_NICE = 10  # added to the nice value of the loading thread; effect on requests: docs/decisions/0021


class ModelWatcher:
    """Update `models` when the files at `path` change. A context manager; enter it after `pool`, which runs the models.

    Nothing else may change `models`. `every_s` is the time between two scans; 0 = no scans except by calls of `scan`.
    """

    def __init__(
        self,
        path: Path,
        options: LoadOptions,
        models: ModelRegistry,
        pool: LeaderFollowerPool,
        *,
        every_s: float,
        late_s: float = LATE_S,
    ) -> None:
        self._path = path
        self._options = options
        self._models = models
        self._pool = pool
        self._every_s = every_s
        self._late_s = late_s
        self._last_found = {model.file.path: model.file for model in models if model.file}
        self._retired: list[tuple[ServedModel, float]] = []  # with the time of retiring, time.monotonic seconds
        self._warnings: set[str] = set()  # of the last scan
        self._last_warnings: set[str] = set()  # of the scan before it
        self._stopping = threading.Event()
        self._component = Component(ComponentName.MODEL_WATCHER)
        self._thread = threading.Thread(target=self._run, name="model-watcher", daemon=True)

    def __enter__(self) -> "ModelWatcher":
        if self._every_s:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        if self._every_s:
            self._thread.join()

    def stop(self) -> None:
        """Stop scanning; a model that is being loaded will not be activated."""
        self._stopping.set()

    def scan(self) -> None:
        """Scan once; load each new or changed file, and retire the model of each missing or excluded file.

        A new or changed file is loaded when two consecutive scans have found it in the same state. A file is missing
        when two consecutive scans have not found it. Files that the version policy excludes are only listed.
        """
        self._unload_retired()
        self._last_warnings, self._warnings = self._warnings, set()
        try:
            found = {file.path: file for file in find(self._path)}
        except OSError as exc:
            self._warn_once("models cannot be scanned, served models stay", cause=str(exc))
            return
        if not found:  # a volume that is not mounted is more likely than a wish to serve nothing
            self._warn_once("no model found, served models stay", path=str(self._path))
            return
        last_found, self._last_found = self._last_found, found

        def serve(file: ModelFile) -> bool:
            if file.path in found:
                self._update(file, is_unchanged=last_found.get(file.path) == file)
            return self._model_of(file.path) is not None

        present = {**last_found, **found}
        excluded = select(present.values(), self._options.versions, serve)
        known = {each.file.path for each in (*self._models, *self._models.refused) if each.file}
        self._remove(known - {*present})
        self._exclude(excluded)
        for problem in unmet(present.values(), self._options.versions):
            self._warn_once("a version or model that --versions names is missing", cause=problem)

    def _run(self) -> None:
        """Scan until `stop`. Health ignores errors: the served models stay right, and new files are found later."""
        try:
            _lower_priority(self._options)
        except OSError as exc:  # forbidden in a sandbox; the thread then competes with the requests for the processor
            self._component.record_error(exc)
        keep_running(self._component, self._scan_regularly, self._stopping)

    def _scan_regularly(self) -> None:
        while not self._stopping.wait(self._every_s):
            self.scan()
            self._component.record_success()

    def _update(self, file: ModelFile, *, is_unchanged: bool) -> None:
        """Load a new or changed file if it `is_unchanged` since the last scan, otherwise wait for the next scan."""
        if self._is_settled(file) or self._stopping.is_set():
            return
        if is_unchanged:
            self._load(file)
        else:
            log.info("model found", file=str(file.path))

    def _is_settled(self, file: ModelFile) -> bool:
        """Return whether this file, unchanged, is served or was refused."""
        for refused in self._models.refused:
            if refused.file.path == file.path:
                return refused.file == file
        return any(model.file == file for model in self._models)

    def _model_of(self, path: Path) -> ServedModel | None:
        return next((model for model in self._models if model.file and model.file.path == path), None)

    def _load(self, file: ModelFile) -> None:
        """Load a file and activate its model in place of the one from the same path, or refuse the file."""
        old = self._model_of(file.path)
        started_at = time.monotonic()
        try:
            if old and digest_of(file.path) == old.artifact.digest:  # same bytes, for example after `touch`
                new = replace(old, file=file)
            else:
                new = load(file, self._options)
                self._check(new, old)
        except Exception as exc:  # ONNX Runtime and a failing disk raise other types; the operator must see the cause
            if file.is_unchanged():  # a file that is still being written is found again by the next scan
                self._refuse(file, old, exc)
            return
        if not self._stopping.is_set():
            self._activate(new, old, load_s=round(time.monotonic() - started_at, 3))

    def _check(self, new: ServedModel, old: ServedModel | None) -> None:
        if old:
            allows = self._options.allows_label_changes
            check_replacement(new, old, default_model=self._models.default_model, allows_label_changes=allows)

    def _activate(self, new: ServedModel, old: ServedModel | None, load_s: float) -> None:
        assert new.file
        models = [*(model for model in self._models if model is not old), new]
        was_loaded = not old or new.batcher is not old.batcher
        if was_loaded:
            self._pool.add(new.batcher, polls_while_saturated=new.polls_while_saturated)
            self._models.loads["served"] += 1
        self._models.put(models, self._refused_except({new.file.path}))
        if was_loaded:
            key = {"model": new.name, "version": new.version, "digest": new.artifact.digest}
            is_newest = self._models.get(new.name, "") is new
            properties = {"is_newest": is_newest, "provider": new.provider, "scores": new.score_kind.value}
            log.info("model serves", load_s=load_s, **properties, **key)
            self._retire([old] if old else [], "replaced")

    def _refuse(self, file: ModelFile, old: ServedModel | None, error: Exception) -> None:
        cause = str(error) if isinstance(error, StartError) else f"{file.path}: {type(error).__name__}: {error}"
        name, version = (old.name, old.version) if old else (file.name, file.version)
        self._models.loads["refused"] += 1
        refused = RefusedFile(name, version, file, cause)
        self._models.put(self._models, [*self._refused_except({file.path}), refused])
        log.error("model refused, what is served stays", model=name, version=version, cause=cause)

    def _remove(self, missing: set[Path]) -> None:
        """Retire the models of removed files, except the last version of the default model."""
        if not missing:
            return
        refused = self._refused_except(missing)
        removed = [model for model in self._models if model.file and model.file.path in missing]
        default = self._models.get("", "")
        if default in removed and all(model in removed for model in self._models if model.name == default.name):
            removed.remove(default)
            event = "model kept without its file: nothing else can be the default"
            self._warn_once(event, model=default.name, version=default.version)
        if removed or len(refused) < len(self._models.refused):
            self._models.put([model for model in self._models if model not in removed], refused)
        self._retire(removed, "removed")

    def _exclude(self, excluded: list[ExcludedFile]) -> None:
        """Retire the models that the version policy excludes; refused files that it excludes are no longer refused."""
        if tuple(excluded) == self._models.excluded:
            return
        paths = {file.path for file in excluded}
        retired = [model for model in self._models if model.file and model.file.path in paths]
        served = [model for model in self._models if model not in retired]
        self._models.put(served, self._refused_except(paths), excluded)
        self._retire(retired, "excluded by --versions")

    def _refused_except(self, paths: set[Path]) -> list[RefusedFile]:
        return [refused for refused in self._models.refused if refused.file.path not in paths]

    def _retire(self, models: list[ServedModel], cause: str) -> None:
        for model in models:
            self._retired.append((model, time.monotonic()))
            queued_rows = model.batcher.queued_rows
            log.info("model retired", model=model.name, version=model.version, cause=cause, queued_rows=queued_rows)

    def _unload_retired(self) -> None:
        """Unload the retired models that late requests no longer use and whose queued rows have run."""
        for model, since in list(self._retired):
            if time.monotonic() > since + self._late_s and model.batcher.release():
                self._retired.remove((model, since))
                self._pool.remove(model.batcher)
                log.info("model unloaded", model=model.name, version=model.version)

    def _warn_once(self, event: str, **fields: object) -> None:
        """Log a warning, unless the last scan had the same one."""
        warning = f"{event} {fields}"
        self._warnings.add(warning)
        if warning not in self._last_warnings:
            log.warning(event, **fields)


def _lower_priority(options: LoadOptions) -> None:
    """Run this thread at lower scheduling priority than the others, on Linux, where each thread has a priority.

    Do nothing if CUDA may be used: CUDA starts threads here that serve requests and would inherit the priority.
    """
    if sys.platform == "linux" and not may_use_cuda(options):
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, min(19, os.getpriority(os.PRIO_PROCESS, me) + _NICE))
