"""Find the model that a request names, while models are replaced.

The served models are one immutable snapshot. A change replaces the snapshot, so that readers take no lock. `loader`
creates the models, `watcher` replaces them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..batching.batcher import Batcher
from ..batching.leader_follower_pool import LeaderFollowerPool, RequestSource
from ..engines.score_kind import ScoreKind
from ..errors import ModelNotFound, ModelRefused
from .artifact import Artifact
from .repository import Misplaced, ModelFile

LoadOutcome = Literal["served", "refused"]

_MAX_LISTED_CHARACTERS = 2000  # of model names in an error message: gRPC limits the size of metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version of one model, with the batcher that runs it."""

    name: str
    version: str
    artifact: Artifact
    provider: str
    score_kind: ScoreKind
    batcher: Batcher
    file: ModelFile | None = None  # None = not loaded from a file
    polls_while_saturated: bool = True  # as in LeaderFollowerPool
    buckets: tuple[int, ...] = ()  # computed batch sizes, to which batches are padded; () = any size


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A model file that is not served."""

    name: str  # of the model that is served instead; if there is none, the name of the folder
    version: str
    file: ModelFile
    cause: str  # one line for the operator; may contain paths, so clients must not receive it


@dataclass(frozen=True, slots=True)
class ExcludedFile:
    """A model file of the repository that the version policy excludes: it is neither loaded nor read."""

    name: str
    version: str
    path: Path
    rule: str  # the part of --versions that excludes it


class ModelRegistry:
    """Hold the served models. Any thread may read; one thread at a time may call `put`."""

    def __init__(
        self,
        models: Iterable[ServedModel],
        default_model: str = "",
        refused: Iterable[RefusedFile] = (),
        excluded: Iterable[ExcludedFile] = (),
    ) -> None:
        """Create the registry; raise ModelRefused if no model is named `default_model` ("" = the first by name)."""
        self.on_change: Callable[[], object] = lambda: None  # called after `put`, on the same thread
        models = list(models)
        self.default_model = default_model or min(model.name for model in models)
        snapshot = self._snapshot = _Snapshot.of(models, refused, excluded, self.default_model)
        self.loads: Counter[LoadOutcome] = Counter({"served": len(snapshot.models), "refused": len(snapshot.refused)})
        """Files loaded since the start, by outcome."""

    def __iter__(self) -> Iterator[ServedModel]:
        """Iterate over the models: the default model first, then by name; the newest version first."""
        return iter(self._snapshot.models)

    @property
    def refused(self) -> tuple[RefusedFile, ...]:
        """Return the existing files that are not served, because they do not fit."""
        return self._snapshot.refused

    @property
    def excluded(self) -> tuple[ExcludedFile, ...]:
        """Return the existing files that are not loaded, because of the version policy."""
        return self._snapshot.excluded

    @property
    def misplaced(self) -> tuple[Misplaced, ...]:
        """Return what looks like a model in the repository, but is not served because of its place."""
        return self._snapshot.misplaced

    def put(
        self,
        models: Iterable[ServedModel],
        refused: Iterable[RefusedFile],
        excluded: Iterable[ExcludedFile] | None = None,  # None = as before, except files that were loaded or refused
        misplaced: Iterable[Misplaced] | None = None,  # None = as before
    ) -> None:
        """Replace all models at once; raise ModelRefused, without a change, if none has the default model's name."""
        excluded = self.excluded if excluded is None else excluded
        snapshot = _Snapshot.of(models, refused, excluded, self.default_model)
        self._snapshot = replace(snapshot, misplaced=self.misplaced if misplaced is None else tuple(misplaced))
        self.on_change()

    def thread_pool(self, source: RequestSource | None = None) -> LeaderFollowerPool:
        """Return a thread pool for all models."""
        return LeaderFollowerPool(
            [model.batcher for model in self],
            slots=max(model.batcher.limits.slots for model in self),
            source=source,
            polls_while_saturated=any(model.polls_while_saturated for model in self),
        )

    def get(self, name: str, version: str) -> ServedModel:
        """Return the model of name ("" = the default) and version ("", "-1" = the newest), or raise ModelNotFound."""
        snapshot = self._snapshot
        if model := snapshot.by_key.get((name, version)):
            return model
        wanted = f"{name[:100] or self.default_model!r}"
        wanted += f" version {version[:100]!r}" if version else ""
        why = snapshot.why_not_served(name or self.default_model, version)
        newest = snapshot.by_key.get((name, ""))
        raise ModelNotFound(
            f"no model {wanted}{why}; there are: {snapshot.listed()}", newest_version=newest.version if newest else ""
        )

    def versions(self, name: str) -> list[str]:
        """Return the versions served under `name`, newest first."""
        return self._snapshot.versions(name)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The models that are served between two changes."""

    models: tuple[ServedModel, ...]  # in the order of `ModelRegistry.__iter__`
    refused: tuple[RefusedFile, ...]
    excluded: tuple[ExcludedFile, ...]
    # By name and version, as a request states them: name "" is the default model, version "" or "-1" the newest.
    by_key: dict[tuple[str, str], ServedModel]
    misplaced: tuple[Misplaced, ...] = ()

    @classmethod
    def of(
        cls,
        models: Iterable[ServedModel],
        refused: Iterable[RefusedFile],
        excluded: Iterable[ExcludedFile],
        default: str,
    ) -> "_Snapshot":
        ordered = tuple(sorted(models, key=lambda m: (m.name != default, m.name, -int(m.version))))
        by_key: dict[tuple[str, str], ServedModel] = {}
        for model in ordered:
            for name in (model.name, "") if model.name == default else (model.name,):
                by_key[name, model.version] = model
                by_key.setdefault((name, ""), model)
                by_key.setdefault((name, "-1"), model)  # clients of Triton
        refused = tuple(refused)
        tried = {model.file.path for model in ordered if model.file} | {each.file.path for each in refused}
        snapshot = cls(ordered, refused, tuple(file for file in excluded if file.path not in tried), by_key)
        if ("", "") not in by_key:
            raise ModelRefused(f"no model {default!r} to be the default; there are: {snapshot.listed()}")
        return snapshot

    def versions(self, name: str) -> list[str]:
        return [model.version for model in self.models if model.name == name]

    def why_not_served(self, name: str, version: str) -> str:
        """Return why an existing version is not served, to be added to an error message; "" if it does not exist."""
        for excluded in self.excluded:
            if (excluded.name, excluded.version) == (name, version):
                return f": --versions {excluded.rule} excludes it"
        is_refused = any((refused.name, refused.version) == (name, version) for refused in self.refused)
        return ": its file is refused" if is_refused else ""

    def listed(self) -> str:
        names = dict.fromkeys(model.name for model in self.models)
        listed = "; ".join(f"{name} (version {', '.join(self.versions(name))})" for name in names)
        return listed if len(listed) <= _MAX_LISTED_CHARACTERS else f"{listed[:_MAX_LISTED_CHARACTERS]} ..."
