"""Load model files and warm them up: each file is served or refused with a reason.

Flow of a file: ONNX Runtime on the CPU -> `artifact` checks its signature -> an engine on CUDA or the CPU, warmed up ->
a trial of its scores. The service loads files at its start; `watcher` loads files while it runs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnxruntime as ort
import structlog

from ..batching.batcher import Batcher, BatchLimits
from ..engines.cpu import Engine, available_cpus, open_session
from ..engines.cuda import CudaEngine, CudaOptions, open_on_cuda
from ..engines.cuda_device import is_built_in
from ..engines.parity import Reference
from ..engines.score_kind import ScoreKind, kind_of
from ..engines.trial import ROWS, Trial, tolerance_of, try_out
from ..errors import ModelRefused, ProviderMissing, StartError
from ..version_policy import VersionPolicy
from .artifact import Artifact, adapt_command, read_artifact
from .registry import ExcludedFile, ModelRegistry, RefusedFile, ServedModel
from .repository import MISPLACED, ModelFile, find, scan, why_no_model
from .selection import select, unmet

log = structlog.get_logger()

Provider = Literal["auto", "cpu", "cuda"]

LoadResult = ServedModel | StartError  # of one file: its model, or why the file is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Which models to load, and how to run them."""

    versions: VersionPolicy = field(default_factory=VersionPolicy)  # of a repository
    allows_label_changes: bool = False  # whether a file may replace another one of its version that has other labels
    allows_unstable_scores: bool = False  # whether a model with faults in its trial is served
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
    """Load a file, warm it up and try it on a few drawings.

    Raise ModelRefused, with the reason, if the file does not fit or changed during the loading. Raise
    ProviderMissing if `options.provider` is `cuda`, and the model does not run on CUDA.
    """
    session = open_session(file.path)
    artifact = read_artifact(file.path, session)
    try:
        engine = _engine(file.path, session, artifact, options)
        score_kind = _score_kind(file.path, engine, artifact, options)
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
    name = file.name or artifact.name or file.path.stem
    version = file.version or (artifact.version if artifact.version.isdecimal() else "1")
    return ServedModel(
        name=name,
        version=version,
        artifact=artifact,
        provider=engine.provider,
        score_kind=score_kind,
        batcher=Batcher(engine.predict, limits, model=f"model {name[:100]!r} version {version}"),
        file=file,
        polls_while_saturated=engine.polls_while_saturated or options.has_spare_cpus,
        buckets=engine.buckets,
    )


def _engine(file: Path, session: ort.InferenceSession, artifact: Artifact, options: LoadOptions) -> Engine | CudaEngine:
    """Return a warm engine on CUDA or on the CPU; `session` runs the model on the CPU, to check the scores of CUDA."""
    classes, names, max_batch_rows = len(artifact.labels), artifact.names, options.max_batch_rows
    if may_use_cuda(options):
        try:
            reference = Reference(session, classes, names)
            # Check this first: with unstable scores, comparing CUDA with the CPU would fail without the reason.
            tolerance = tolerance_of(artifact.variant)
            _check(try_out(reference.scores, classes=classes, batch_rows=ROWS, tolerance=tolerance), options)
            return open_on_cuda(file, reference, max_batch_rows=max_batch_rows, options=options.cuda)
        except ProviderMissing as exc:
            if options.provider == "cuda":
                raise ProviderMissing(f"provider cuda was asked for, but {exc}") from exc
            log.warning("on the CPU, not on CUDA", model=str(file), cause=str(exc))
    slots = options.threads or available_cpus()
    engine = Engine(session, classes=classes, names=names, slots=slots, max_batch_rows=max_batch_rows)
    engine.warm_up()
    return engine


def _score_kind(path: Path, engine: Engine | CudaEngine, artifact: Artifact, options: LoadOptions) -> ScoreKind:
    """Try the model, and return the kind of its scores; warn if they are no probabilities, or are unstable.

    Raise ModelRefused if the scores are unstable and the options do not allow it.
    """
    # Scores of each batch size may differ from those of the CPU by the tolerance, so those of two by twice as much.
    tolerance = max(tolerance_of(artifact.variant), 2 * engine.tolerance)
    classes = len(artifact.labels)
    trial = try_out(engine.predict, classes=classes, batch_rows=engine.batch_rows, tolerance=tolerance)
    _check(trial, options)
    if trial.faults:
        event = "unstable scores, allowed by --allow-unstable-scores"
        log.warning(event, model=str(path), cause="; ".join(trial.faults))
    kind = kind_of(trial.scores)
    if kind is not ScoreKind.PROBABILITIES:
        fields = {} if kind is ScoreKind.INDEPENDENT else {"remedy": adapt_command(path, "--softmax yes")}
        log.warning("the scores of a row are not probabilities", model=str(path), scores=kind.value, **fields)
    return kind


def _check(trial: Trial, options: LoadOptions) -> None:
    if trial.faults and not options.allows_unstable_scores:
        raise ModelRefused(f"{'; '.join(trial.faults)}; --allow-unstable-scores serves such a model")
