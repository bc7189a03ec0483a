"""Says which of the models being served a request means, while others take their place.

What is served is one snapshot that is never changed, only replaced: asking takes no lock. `model_loading` makes what
is in it, `model_watch` replaces it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..batching.batcher import Batcher
from ..batching.leader_follower_pool import LeaderFollowerPool, Source
from ..errors import ModelNotFound, ModelRefused
from .artifact import Artifact
from .repository import ModelFile

Load = Literal["served", "refused"]
"""What came of loading a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One version of one model, with the batcher that runs it."""

    name: str
    version: str
    artifact: Artifact
    provider: str
    batcher: Batcher
    file: ModelFile | None = None
    """What it was loaded from; None = no file."""

    polls_while_saturated: bool = True
    """See `Engine`."""

    buckets: tuple[int, ...] = ()
    """Numbers of rows that are computed: others are padded to the next. None = any number is."""


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that is not served."""

    name: str
    """Of the model that it would be, or whose place it would have taken."""

    version: str
    file: ModelFile

    cause: str
    """One line for the operator; may say where the file lies."""


class ModelRegistry:
    """The models being served. Any thread may ask; one at a time may `put`."""

    def __init__(
        self, models: Iterable[ServedModel], default_model: str = "", refused: Iterable[RefusedFile] = ()
    ) -> None:
        """Orders `models`: those named `default_model` ("" = the first by name) first, newest version first.

        Raises:
            ModelRefused: None is named `default_model`.
        """
        self.on_change: Callable[[], object] = lambda: None
        """Called after `put`, on its thread."""
        models = list(models)
        self.default_model = default_model or min(model.name for model in models)
        """Name that answers when a request names none; it stays the same."""
        self._now = _Snapshot.of(models, refused, self.default_model)
        self.loads: Counter[Load] = Counter({"served": len(self._now.models), "refused": len(self._now.refused)})
        """Files loaded since the start, by what came of it."""

    def __iter__(self) -> Iterator[ServedModel]:
        """Default model first, then by name; newest version first."""
        return iter(self._now.models)

    @property
    def refused(self) -> tuple[RefusedFile, ...]:
        """Files that are there and not served."""
        return self._now.refused

    def put(self, models: Iterable[ServedModel], refused: Iterable[RefusedFile]) -> None:
        """From now on these are served, at once and together.

        Raises:
            ModelRefused: None has the default model's name; nothing has changed.
        """
        self._now = _Snapshot.of(models, refused, self.default_model)
        self.on_change()

    def thread_pool(self, source: Source | None = None) -> LeaderFollowerPool:
        """Threads to run them all; see `LeaderFollowerPool`."""
        return LeaderFollowerPool(
            [model.batcher for model in self],
            slots=max(model.batcher.limits.slots for model in self),
            source=source,
            polls_while_saturated=any(model.polls_while_saturated for model in self),
        )

    def get(self, name: str, version: str) -> ServedModel:
        """The model of that name ("" = the default) and version ("" = the newest).

        Raises:
            ModelNotFound: There is none; the message lists those there are.
        """
        now = self._now
        if model := now.meant.get((name, version)):
            return model
        wanted = f"{name[:100] or self.default_model!r}"
        wanted += f" version {version[:100]!r}" if version else ""
        raise ModelNotFound(f"no model {wanted}; there are: {now.known()}")

    def versions(self, name: str) -> list[str]:
        """Versions served under `name`, newest first."""
        return self._now.versions(name)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What is served between two changes."""

    models: tuple[ServedModel, ...]  # as `ModelRegistry.__iter__` says
    refused: tuple[RefusedFile, ...]
    meant: dict[tuple[str, str], ServedModel]  # by what a request may say: name or "", version or ""

    @classmethod
    def of(cls, models: Iterable[ServedModel], refused: Iterable[RefusedFile], default: str) -> "_Snapshot":
        ordered = tuple(sorted(models, key=lambda m: (m.name != default, m.name, -int(m.version))))
        meant: dict[tuple[str, str], ServedModel] = {}
        for model in ordered:
            for name in (model.name, "") if model.name == default else (model.name,):
                meant[name, model.version] = model
                meant.setdefault((name, ""), model)
        snapshot = cls(ordered, tuple(refused), meant)
        if ("", "") not in meant:
            raise ModelRefused(f"no model {default!r} to be the default; there are: {snapshot.known()}")
        return snapshot

    def versions(self, name: str) -> list[str]:
        return [model.version for model in self.models if model.name == name]

    def known(self) -> str:
        """Names and versions for an error message, which travels in gRPC's metadata and so must stay small."""
        names = dict.fromkeys(model.name for model in self.models)
        known = "; ".join(f"{name} (version {', '.join(self.versions(name))})" for name in names)
        return known if len(known) <= 2000 else f"{known[:2000]} ..."
