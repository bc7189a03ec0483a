"""Finds the model files, loads them, and says which one a request means.

A path is one model.onnx, or a repository NAME/VERSION/model.onnx of which every version is served.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnxruntime as ort
import structlog

from .artifact import Artifact, read_artifact
from .batcher import Batcher, BatchLimits
from .crew import Crew, Source
from .cuda import CudaEngine, CudaOptions, open_on_cuda
from .cuda_device import is_built_in
from .engine import Engine, available_cpus, open_session
from .errors import ModelNotFound, ModelRefused, ProviderMissing
from .reference import Reference

log = structlog.get_logger()

Provider = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to run the models found."""

    provider: Provider = "auto"
    """`auto`, `cpu` or `cuda`: `auto` takes CUDA where it works and the CPU elsewhere, `cuda` takes nothing else."""

    cuda: CudaOptions = field(default_factory=CudaOptions)
    """How to run them where that is CUDA."""

    threads: int = 0
    """CPUs to use; 0 = as many as this process may."""

    default_model: str = ""
    """Name that answers when a request names none; empty = the first by name."""

    max_batch_rows: int = 0
    """Most rows in one model call; 0 = as `Engine` finds best."""

    max_queued_rows: int = 65536
    """Most rows waiting for each model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version of one model, with the batcher that runs it."""

    name: str
    version: str
    artifact: Artifact
    provider: str
    batcher: Batcher
    watches_while_full: bool = True
    """See `Engine`."""

    buckets: tuple[int, ...] = ()
    """Numbers of rows that are computed: others are padded to the next. None = any number is."""


class Models:
    """The models being served."""

    def __init__(self, models: Iterable[ServedModel], default_model: str = "") -> None:
        """Orders `models`: those named `default_model` ("" = the first by name) first, newest version first.

        Raises:
            ModelRefused: None is named `default_model`.
        """
        self._models = sorted(models, key=lambda m: (m.name, -int(m.version)))
        default = default_model or self._models[0].name
        if default not in (model.name for model in self._models):
            raise ModelRefused(f"no model {default!r} to be the default; there are: {self._known()}")
        self._models.sort(key=lambda m: m.name != default)

    def __iter__(self) -> Iterator[ServedModel]:
        """Default model first, then by name; newest version first."""
        return iter(self._models)

    def crew(self, source: Source | None = None) -> Crew:
        """Threads to run them all; see `Crew`."""
        return Crew(
            [model.batcher for model in self._models],
            lanes=max(model.batcher.limits.lanes for model in self._models),
            source=source,
            watches_while_full=any(model.watches_while_full for model in self._models),
        )

    def get(self, name: str, version: str) -> ServedModel:
        """The model of that name ("" = the default) and version ("" = the newest).

        Raises:
            ModelNotFound: There is none; the message lists those there are.
        """
        name = name or self._models[0].name
        for model in self._models:
            if model.name == name and version in ("", model.version):
                return model
        wanted = f"{name[:100]!r} version {version[:100]!r}" if version else f"{name[:100]!r}"
        raise ModelNotFound(f"no model {wanted}; there are: {self._known()}")

    def versions(self, name: str) -> list[str]:
        """Versions served under `name`, newest first."""
        return [model.version for model in self._models if model.name == name]

    def _known(self) -> str:
        """Names and versions for an error message, which travels in gRPC's metadata and so must stay small."""
        names = dict.fromkeys(model.name for model in self._models)
        known = "; ".join(f"{name} (version {', '.join(self.versions(name))})" for name in names)
        return known if len(known) <= 2000 else f"{known[:2000]} ..."


def load_models(path: Path, options: LoadOptions) -> Models:
    """Loads and warms up every model at `path`.

    Raises:
        ModelRefused: No model is there, one does not fit, or there is no `default_model`.
        ProviderMissing: `cuda` was asked for and cannot be had; says why.
    """
    return Models([_load(file, name, version, options) for file, name, version in _find(path)], options.default_model)


def _find(path: Path) -> list[tuple[Path, str, str]]:
    """Model files with the name and version that their folders give; "" for one file, which says so itself."""
    if not path.is_dir():
        return [(path, "", "")]
    found = [
        (file, file.parent.parent.name, file.parent.name)
        for file in sorted(path.glob("*/*/model.onnx"))
        if file.parent.name.isdecimal()
    ]
    if not found:
        raise ModelRefused(f"{path}: no model there; a repository holds NAME/VERSION/model.onnx, VERSION a number")
    return found


def _load(file: Path, name: str, version: str, options: LoadOptions) -> ServedModel:
    session = open_session(file)
    artifact = read_artifact(file, session)
    try:
        engine = _engine(file, session, len(artifact.labels), options)
    except ModelRefused as exc:
        raise ModelRefused(f"{file}: {exc}") from exc
    own_version = artifact.version if artifact.version.isdecimal() else "1"
    return ServedModel(
        name=name or artifact.name or file.stem,
        version=version or own_version,
        artifact=artifact,
        provider=engine.provider,
        batcher=Batcher(engine.predict, _limits(engine, options)),
        watches_while_full=engine.watches_while_full,
        buckets=engine.buckets,
    )


def _limits(engine: Engine | CudaEngine, options: LoadOptions) -> BatchLimits:
    return BatchLimits(
        lanes=engine.lanes,
        max_batch_rows=engine.batch_rows,
        share_rows=engine.share_rows,
        quick_rows=engine.quick_rows,
        max_queued_rows=options.max_queued_rows,
    )


def _engine(file: Path, session: ort.InferenceSession, classes: int, options: LoadOptions) -> Engine | CudaEngine:
    """The model warmed up on CUDA or, from `session`, on the CPU; `session` is also what CUDA is compared with."""
    rows = options.max_batch_rows
    if options.provider == "cuda" or (options.provider == "auto" and is_built_in()):
        try:
            return open_on_cuda(file, Reference(session, classes), max_batch_rows=rows, options=options.cuda)
        except ProviderMissing as exc:
            if options.provider == "cuda":
                raise ProviderMissing(f"provider cuda was asked for, but {exc}") from exc
            log.warning("on the CPU, not on CUDA", model=str(file), cause=str(exc))
    engine = Engine(session, classes=classes, lanes=options.threads or available_cpus(), max_batch_rows=rows)
    engine.warm_up()
    return engine
