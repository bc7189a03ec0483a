"""Load the first models of a service while their files arrive; `watcher` replaces models that are served."""

from pathlib import Path

from ..errors import ModelRefused, StartError
from .loader import (
    LoadOptions,
    LoadResult,
    find_models,
    load_selected,
    log_refusal,
    note_misplaced,
    to_registry,
    try_load,
)
from .registry import ModelRegistry
from .repository import ModelFile


class ModelArrival:
    """The model files at `path`, from the first scan until the default model can be served."""

    def __init__(self, path: Path, options: LoadOptions) -> None:
        self._path = path
        self._options = options
        self._last_found: set[ModelFile] | None = None  # None = before the first scan
        self._results: dict[ModelFile, LoadResult] = {}

    def scan(self) -> ModelRegistry:
        """Load the files that have arrived, and return all models; each file is loaded, or refused and logged, once.

        Files that the version policy excludes are not loaded. After the first scan, a file is loaded when two scans in
        a row find it unchanged, because its copy may be unfinished until then. A call takes as long as the models need
        to load.

        Raises:
            StartError: There is no model yet, none that can be the default, or none that the version policy names.
        """
        last_found, self._last_found = self._last_found, set()
        files = find_models(self._path)
        self._last_found = set(files)
        arrived = files if last_found is None else [file for file in files if file in last_found]
        if not arrived:
            raise ModelRefused(f"{self._path}: the model files may be unfinished")
        self._results, excluded = load_selected(arrived, self._options.versions, self._load_once)
        models = to_registry(self._results, excluded, self._options.default_model or files[0].name)
        note_misplaced(self._path, models)
        return models

    def _load_once(self, file: ModelFile) -> LoadResult:
        if known := self._results.get(file):
            return known
        result = try_load(file, self._options)
        if isinstance(result, StartError) and file.is_unchanged():  # the next scan finds a changed file as a new one
            log_refusal(file, result)
        return result
