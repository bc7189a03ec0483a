"""Load model files and warm them up: each file is served or refused with a reason.

Flow of a file: ONNX Runtime on the CPU -> `artifact` checks its signature -> an engine on CUDA or the CPU, warmed up ->
a check of its scores. The service loads files at its start; `watcher` loads files while it runs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import structlog

from ..batching.batcher import Batcher, BatchLimits
from ..engines.cpu import Engine, available_cpus, open_session
from ..engines.cuda import CudaEngine, CudaOptions, open_on_cuda
from ..engines.cuda_device import is_built_in
from ..engines.parity import Reference, random_drawings
from ..errors import ModelRefused, ProviderMissing, StartError
from ..version_policy import VersionPolicy
from .artifact import read_artifact
from .registry import ExcludedFile, ModelRegistry, RefusedFile, ServedModel
from .repository import MISPLACED, ModelFile, find, scan, why_no_model
from .selection import select, unmet

log = structlog.get_logger()

Provider = Literal["auto", "cpu", "cuda"]

LoadResult = ServedModel | StartError  # of one file: its model, or why the file is refused

_SUM_TOLERANCE = 1e-2  # for the sum of a row's scores: the tolerance for float16 in `engines.parity`


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Which models to load, and how to run them."""

    versions: VersionPolicy = field(default_factory=VersionPolicy)  # of a repository
    allows_label_changes: bool = False  # whether a file may replace another one of its version that has other labels
    provider: Provider = "auto"  # `auto` uses CUDA if CUDA works, otherwise the CPU
    cuda: CudaOptions = field(default_factory=CudaOptions)
    threads: int = 0  # CPUs for model calls; 0 = all that this process may use
    has_spare_cpus: bool = False  # whether other CPUs are free to poll for requests during the model calls
    default_model: str = ""  # answers requests that name no model; empty = the first by name
    max_batch_rows: int = 0  # most rows in one model call; 0 = chosen by the engine
    max_queued_rows: int = 65536  # most waiting rows per model


def load_models(path: Path, options: LoadOptions) -> ModelRegistry:
    """Load the versions of the policy at `path`; refuse files that do not fit, if a version of the default model fits.

    Raises:
        ModelRefused: There is no model, none that can be the default, or none that the version policy names.
        ProviderMissing: `options.provider` is `cuda`, and CUDA does not work; the message has the reason.
    """
    files = find_models(path)
    results, excluded = load_selected(files, options.versions, lambda file: try_load(file, options))
    models = to_registry(results, excluded, options.default_model or files[0].name)
    for file, result in results.items():
        if isinstance(result, StartError):
            log_refusal(file, result)
    note_misplaced(path, models)
    return models


def find_models(path: Path) -> list[ModelFile]:
    """Return the model files at `path`, of which there is at least one; raise ModelRefused if there is none."""
    try:
        files = find(path)
    except OSError as exc:
        raise ModelRefused(f"{path}: cannot be scanned: {exc}") from exc
    if not files:
        raise ModelRefused(f"{path}: {why_no_model(path)}")
    return files


def note_misplaced(path: Path, models: ModelRegistry) -> None:
    """Log the models in the wrong place of the repository at `path`, and store them in `models`."""
    try:
        misplaced = scan(path).misplaced
    except OSError:  # the models were found a moment ago; the watcher scans again
        return
    for each in misplaced:
        log.warning(MISPLACED, cause=each.cause)
    models.put(models, models.refused, misplaced=misplaced)


def load_selected(
    files: list[ModelFile], policy: VersionPolicy, load_file: Callable[[ModelFile], LoadResult]
) -> tuple[dict[ModelFile, LoadResult], list[ExcludedFile]]:
    """Return the results of `load_file` for the files that the policy includes, and the excluded files.

    Raises:
        ModelRefused: No file has a model or a version that the policy names.
    """
    if problem := next(unmet(files, policy), None):
        raise ModelRefused(problem)
    results: dict[ModelFile, LoadResult] = {}

    def serve(file: ModelFile) -> bool:
        results[file] = load_file(file)
        return isinstance(results[file], ServedModel)

    excluded = select(files, policy, serve)
    return results, excluded


def try_load(file: ModelFile, options: LoadOptions) -> LoadResult:
    """Load a file as `load` does; return the error if the file is refused."""
    try:
        return load(file, options)
    except StartError as exc:
        return exc


def to_registry(
    results: Mapping[ModelFile, LoadResult], excluded: Iterable[ExcludedFile], default: str
) -> ModelRegistry:
    """Return a registry of the loaded, the refused and the excluded files.

    `default` is the name of the default model; the default model of a single file has the name in that file.

    Raises:
        StartError: The error of the first file if no file was loaded or no version of the default model; ModelRefused
            if the default model has no file.
    """
    served = [result for result in results.values() if isinstance(result, ServedModel)]
    errors = {file: result for file, result in results.items() if isinstance(result, StartError)}
    has_default = default in {model.name for model in served}
    for file, error in errors.items():
        if not served or (file.name == default and not has_default):
            raise error
    refused = [RefusedFile(file.name, file.version, file, str(error)) for file, error in errors.items()]
    return ModelRegistry(served, default, refused, excluded)


def log_refusal(file: ModelFile, error: StartError) -> None:
    """Log that a file is refused before the service serves."""
    log.error("model refused", model=file.name, version=file.version, cause=str(error))


def may_use_cuda(options: LoadOptions) -> bool:
    """Return whether models are tried on CUDA."""
    return options.provider == "cuda" or (options.provider == "auto" and is_built_in())


def load(file: ModelFile, options: LoadOptions) -> ServedModel:
    """Load a file, warm it up and check its scores.

    Raise ModelRefused, with the reason, if the file does not fit or changed during the loading. Raise
    ProviderMissing if `options.provider` is `cuda`, and the model does not run on CUDA.
    """
    session = open_session(file.path)
    artifact = read_artifact(file.path, session)
    try:
        engine = _engine(file.path, session, len(artifact.labels), options)
        _check_scores(file.path, engine)
    except ModelRefused as exc:
        raise ModelRefused(f"{file.path}: {exc}") from exc
    if not file.is_unchanged():  # the digest and the scores may be of two different files
        raise ModelRefused(f"{file.path}: changed while it was loaded")
    limits = BatchLimits(
        slots=engine.slots,
        max_batch_rows=engine.batch_rows,
        min_split_rows=engine.min_split_rows,
        quick_rows=engine.quick_rows,
        max_queued_rows=options.max_queued_rows,
    )
    return ServedModel(
        name=file.name or artifact.name or file.path.stem,
        version=file.version or (artifact.version if artifact.version.isdecimal() else "1"),
        artifact=artifact,
        provider=engine.provider,
        batcher=Batcher(engine.predict, limits),
        file=file,
        polls_while_saturated=engine.polls_while_saturated or options.has_spare_cpus,
        buckets=engine.buckets,
    )


def _engine(file: Path, session: ort.InferenceSession, classes: int, options: LoadOptions) -> Engine | CudaEngine:
    """Return a warm engine on CUDA or on the CPU; `session` runs the model on the CPU, to check the scores of CUDA."""
    max_batch_rows = options.max_batch_rows
    if may_use_cuda(options):
        try:
            reference = Reference(session, classes)
            return open_on_cuda(file, reference, max_batch_rows=max_batch_rows, options=options.cuda)
        except ProviderMissing as exc:
            if options.provider == "cuda":
                raise ProviderMissing(f"provider cuda was asked for, but {exc}") from exc
            log.warning("on the CPU, not on CUDA", model=str(file), cause=str(exc))
    slots = options.threads or available_cpus()
    engine = Engine(session, classes=classes, slots=slots, max_batch_rows=max_batch_rows)
    engine.warm_up()
    return engine


def _check_scores(path: Path, engine: Engine | CudaEngine) -> None:
    """Refuse a model whose scores are not finite; warn if the scores of a row do not sum to 1."""
    scores = engine.predict(random_drawings(min(8, engine.batch_rows)))
    if not np.isfinite(scores).all():
        raise ModelRefused("scores must be finite numbers, got NaN or infinity for a drawing")
    sums = scores.sum(axis=1)
    worst = float(sums[np.argmax(np.abs(sums - 1))])
    if abs(worst - 1) > _SUM_TOLERANCE:
        log.warning("the scores of a row do not sum to 1: no softmax?", model=str(path), sum=round(worst, 3))
