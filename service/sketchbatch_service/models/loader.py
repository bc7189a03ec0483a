"""Loads model files and warms them up: what came of one can be served, or is refused with a reason.

Flow of a file: ONNX Runtime on the CPU -> `artifact` -> the engine, on CUDA or the CPU, warmed up -> its scores are
looked at. Used at start and, by `model_watch`, later.
"""

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
from .artifact import read_artifact
from .registry import ModelRegistry, RefusedFile, ServedModel
from .repository import ModelFile, find

log = structlog.get_logger()

Provider = Literal["auto", "cpu", "cuda"]

_SUM_TOLERANCE = 1e-2
"""Most that the sum of a row's scores may differ from 1: what is called coarse in `reference`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to run the models found."""

    provider: Provider = "auto"
    """`auto`, `cpu` or `cuda`: `auto` takes CUDA where it works and the CPU elsewhere, `cuda` takes nothing else."""

    cuda: CudaOptions = field(default_factory=CudaOptions)
    """How to run them where that is CUDA."""

    threads: int = 0
    """CPUs to use; 0 = as many as this process may."""

    has_spare_cpus: bool = False
    """Whether there are CPUs besides those: requests are taken in on them while all others run model calls."""

    default_model: str = ""
    """Name that answers when a request names none; empty = the first by name."""

    max_batch_rows: int = 0
    """Most rows in one model call; 0 = as `Engine` finds best."""

    max_queued_rows: int = 65536
    """Most rows waiting for each model."""


def load_models(path: Path, options: LoadOptions) -> ModelRegistry:
    """Loads and warms up every model at `path`; those that do not fit are left out, where the default model is left.

    Raises:
        ModelRefused: No model is there, or none that fits to be the default.
        ProviderMissing: `cuda` was asked for and cannot be had; says why.
    """
    try:
        files = find(path)
    except OSError as exc:
        raise ModelRefused(f"{path}: cannot be looked through: {exc}") from exc
    if not files and path.is_dir():
        raise ModelRefused(f"{path}: no model there; a repository holds NAME/VERSION/model.onnx, VERSION a number")
    if not files:
        raise ModelRefused(f"{path}: no such model file")
    served: list[ServedModel] = []
    refused: dict[ModelFile, StartError] = {}
    for file in files:
        try:
            served.append(load(file, options))
        except StartError as exc:
            refused[file] = exc
    default = options.default_model or files[0].name
    has_default = default in {model.name for model in served}
    for file, error in refused.items():
        if not served or (file.name == default and not has_default):
            raise error
    rejections = [RefusedFile(file.name, file.version, file, str(error)) for file, error in refused.items()]
    models = ModelRegistry(served, default, rejections)
    for refusal in rejections:
        log.error("model refused", model=refusal.name, version=refusal.version, cause=refusal.cause)
    return models


def may_use_cuda(options: LoadOptions) -> bool:
    """Whether models are tried on CUDA."""
    return options.provider == "cuda" or (options.provider == "auto" and is_built_in())


def load(file: ModelFile, options: LoadOptions) -> ServedModel:
    """Loads, warms up and tries one file.

    Raises:
        ModelRefused: It does not fit; says which part, and how. Or it is not the file any more that it was.
        ProviderMissing: `cuda` was asked for, and it does not run there.
    """
    session = open_session(file.path)
    artifact = read_artifact(file.path, session)
    try:
        engine = _engine(file.path, session, len(artifact.labels), options)
        _check_scores(file.path, engine)
    except ModelRefused as exc:
        raise ModelRefused(f"{file.path}: {exc}") from exc
    if not file.is_unchanged():  # its digest may be of another file than its scores
        raise ModelRefused(f"{file.path}: changed while it was loaded")
    own_version = artifact.version if artifact.version.isdecimal() else "1"
    return ServedModel(
        name=file.name or artifact.name or file.path.stem,
        version=file.version or own_version,
        artifact=artifact,
        provider=engine.provider,
        batcher=Batcher(engine.predict, _limits(engine, options)),
        file=file,
        polls_while_saturated=engine.polls_while_saturated or options.has_spare_cpus,
        buckets=engine.buckets,
    )


def _limits(engine: Engine | CudaEngine, options: LoadOptions) -> BatchLimits:
    return BatchLimits(
        slots=engine.slots,
        max_batch_rows=engine.batch_rows,
        share_rows=engine.share_rows,
        quick_rows=engine.quick_rows,
        max_queued_rows=options.max_queued_rows,
    )


def _engine(file: Path, session: ort.InferenceSession, classes: int, options: LoadOptions) -> Engine | CudaEngine:
    """The model warmed up on CUDA or, from `session`, on the CPU; `session` is also what CUDA is compared with."""
    rows = options.max_batch_rows
    if may_use_cuda(options):
        try:
            return open_on_cuda(file, Reference(session, classes), max_batch_rows=rows, options=options.cuda)
        except ProviderMissing as exc:
            if options.provider == "cuda":
                raise ProviderMissing(f"provider cuda was asked for, but {exc}") from exc
            log.warning("on the CPU, not on CUDA", model=str(file), cause=str(exc))
    engine = Engine(session, classes=classes, slots=options.threads or available_cpus(), max_batch_rows=rows)
    engine.warm_up()
    return engine


def _check_scores(path: Path, engine: Engine | CudaEngine) -> None:
    """A file that lost its weights, or its softmax, on the way loads as well as any; the second may be meant."""
    scores = engine.predict(random_drawings(min(8, engine.batch_rows)))
    if not np.isfinite(scores).all():
        raise ModelRefused("scores must be finite numbers, got NaN or infinity for a drawing")
    sums = scores.sum(axis=1)
    worst = float(sums[np.argmax(np.abs(sums - 1))])
    if abs(worst - 1) > _SUM_TOLERANCE:
        log.warning("the scores of a row do not sum to 1: no softmax?", model=str(path), sum=round(worst, 3))
