"""Finds the model files, loads them, and says which one a request means.

A path is one model.onnx, or a repository NAME/VERSION/model.onnx of which every version is served.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .artifact import Artifact, read_artifact
from .batcher import BatchLimits
from .counts import CountedBatcher
from .engine import Engine, Provider, open_session
from .errors import ModelNotFound, ModelRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to run the models found."""

    provider: Provider = "auto"
    """`auto`, `cpu` or `cuda`; see `engine.open_session`."""

    threads: int = 0
    """CPU threads of one model call; 0 = as many as this process may use."""

    default_model: str = ""
    """Name that answers when a request names none; empty = the first by name."""

    limits: BatchLimits = field(default_factory=BatchLimits)
    """Batch and queue sizes of each model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version of one model, with the batcher that runs it."""

    name: str
    version: str
    artifact: Artifact
    provider: str
    batcher: CountedBatcher


class Models:
    """The models being served. Leaving it as a context manager finishes queued work and stops their threads."""

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
        self._threads = ExitStack()

    def __enter__(self) -> "Models":
        for model in self._models:
            self._threads.enter_context(model.batcher)
        return self

    def __exit__(self, *exc: object) -> None:
        self._threads.close()

    def __iter__(self) -> Iterator[ServedModel]:
        """Default model first, then by name; newest version first."""
        return iter(self._models)

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
        ProviderMissing: As `engine.open_session`.
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
    session = open_session(file, options.provider, options.threads)
    artifact = read_artifact(file, session)
    engine = Engine(session, classes=len(artifact.labels), max_batch_rows=options.limits.max_batch_rows)
    try:
        engine.warm_up()
    except ModelRefused as exc:
        raise ModelRefused(f"{file}: {exc}") from exc
    own_version = artifact.version if artifact.version.isdecimal() else "1"
    return ServedModel(
        name=name or artifact.name or file.stem,
        version=version or own_version,
        artifact=artifact,
        provider=engine.provider,
        batcher=CountedBatcher(engine.predict, options.limits),
    )
