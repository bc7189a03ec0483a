"""What a job is to do: its inputs, its model, its options, and the parts that it is cut into.

Two runs of the same job have equal plans; `difference` says in words why they have not. Rows are counted through all
inputs; a part is some consecutive rows of them, a shard some consecutive parts. Plain values only: `to_json` is what a
manifest holds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar

FORMAT = 1
"""Of manifests; another number was written by another version of this program."""

_PART_ROWS = 65536
_PART_SCORES = 4 << 20  # scores in a part at most: 16 MB, some four times that while it is written
_LEAST_PART_ROWS = 1024

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What to ask of the service."""

    top_k: int = 1
    """How many of the best classes to write for each row."""
    with_all_scores: bool = False
    """Write the score of every class, too; `top_k` is then 1."""
    model_name: str = ""
    """"" = the service's default."""
    model_version: str = ""
    """"" = the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One source as a manifest remembers it."""

    source: str
    rows: int
    stamp: str
    """Changes whenever the input may have changed."""


class Segment(NamedTuple):
    """Consecutive rows of one source."""

    source: int
    """Its place in `Plan.inputs`."""
    start: int
    stop: int


class Shard(NamedTuple):
    """One of several runs that share a job."""

    number: int
    """From 0."""
    shards: int


ALL = Shard(0, 1)
"""The one run that does it all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One job."""

    inputs: tuple[Input, ...]
    model: str
    version: str
    model_digest: str
    """SHA-256 of the model file, in hex."""
    labels: tuple[str, ...]
    top_k: int
    with_all_scores: bool
    part_rows: int
    """Rows in every part but the last."""
    shard: Shard = ALL

    @property
    def options(self) -> ScoreOptions:
        """What to ask of the service: exactly this version of the model."""
        return ScoreOptions(
            top_k=self.top_k,
            with_all_scores=self.with_all_scores,
            model_name=self.model,
            model_version=self.version,
        )

    @property
    def all_rows(self) -> int:
        """Of all shards."""
        return sum(each.rows for each in self.inputs)

    @property
    def parts(self) -> range:
        """Numbers of the parts of this shard; those of all shards together are every part once."""
        all_parts = -(-self.all_rows // self.part_rows)
        number, shards = self.shard
        return range(all_parts * number // shards, all_parts * (number + 1) // shards)

    @property
    def rows(self) -> int:
        """Of this shard."""
        return sum(map(self.rows_of, self.parts))

    def rows_of(self, part: int) -> int:
        """Of a part, good and bad."""
        return min(self.part_rows, self.all_rows - part * self.part_rows)

    def segments(self, part: int) -> list[Segment]:
        """The rows of a part, source by source."""
        start = part * self.part_rows
        return list(_cut([each.rows for each in self.inputs], start, min(start + self.part_rows, self.all_rows)))

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds."""
        return {"format": FORMAT, **asdict(self), "shard": list(self.shard)}

    @classmethod
    def from_json(cls, manifest: dict[str, Any]) -> "Plan":
        """The plan in a manifest. Raises ValueError where it holds none that this version can read."""
        try:
            if manifest["format"] != FORMAT:
                raise ValueError(f"expected format {FORMAT}, got {manifest['format']}")
            number, shards = map(whole_number, manifest["shard"])
            if number >= shards:
                raise ValueError(f"shard must be below {shards}, got {number}")
            return cls(
                inputs=tuple(_input_from_json(each) for each in manifest["inputs"]),
                model=_checked(str, manifest["model"]),
                version=_checked(str, manifest["version"]),
                model_digest=_checked(str, manifest["model_digest"]),
                labels=tuple(_checked(str, label) for label in manifest["labels"]),
                top_k=whole_number(manifest["top_k"]),
                with_all_scores=_checked(bool, manifest["with_all_scores"]),
                part_rows=whole_number(manifest["part_rows"]) or _none_of("part_rows"),
                shard=Shard(number, shards),
            )
        except (KeyError, TypeError) as exc:
            raise ValueError(f"no manifest of a job: {exc!r}") from exc


def whole_number(value: object) -> int:
    """`value`, if it is one, 0 to 2**63 - 1. Raises ValueError otherwise."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"expected a whole number, got a {type(value).__name__}")
    return value


def good_part_rows(scores: int) -> int:
    """Rows of a part, of so many scores each: many, so that there are few, and few enough to be held in memory."""
    fitting = _PART_SCORES // scores // _LEAST_PART_ROWS * _LEAST_PART_ROWS
    return min(_PART_ROWS, max(_LEAST_PART_ROWS, fitting))


def difference(earlier: Plan, now: Plan) -> str:
    """In words, what of `earlier` is otherwise `now`, apart from stamps; "" = nothing."""
    if difference := _difference_of_inputs(earlier.inputs, now.inputs):
        return difference
    models = [f"{plan.model} version {plan.version} (digest {plan.model_digest[:12]})" for plan in (earlier, now)]
    pairs = (
        ("the model", *models),
        ("--top-k", earlier.top_k, now.top_k),
        ("--all-scores", earlier.with_all_scores, now.with_all_scores),
        ("--part-rows", earlier.part_rows, now.part_rows),
        ("--shard", "{}/{}".format(*earlier.shard), "{}/{}".format(*now.shard)),
        ("labels", earlier.labels, now.labels),
    )
    return next((f"{what} was {was}, and is {is_now}" for what, was, is_now in pairs if was != is_now), "")


def _difference_of_inputs(earlier: Sequence[Input], now: Sequence[Input]) -> str:
    for was, is_now in zip(earlier, now, strict=False):
        if was.source != is_now.source:
            return f"an input was {was.source}, and is {is_now.source}"
        if was.rows != is_now.rows:
            return f"{was.source} had {was.rows:,} rows, and has {is_now.rows:,}"
    if len(earlier) != len(now):
        return f"there were {len(earlier)} inputs, and are {len(now)}"
    return ""


def _cut(lengths: Sequence[int], start: int, stop: int) -> Iterator[Segment]:
    first = 0
    for source, rows in enumerate(lengths):
        begins, ends = max(start, first), min(stop, first + rows)
        if begins < ends:
            yield Segment(source, begins - first, ends - first)
        first += rows


def _input_from_json(found: dict[str, Any]) -> Input:
    return Input(
        source=_checked(str, found["source"]), rows=whole_number(found["rows"]), stamp=_checked(str, found["stamp"])
    )


def _checked(kind: type[_Kind], value: object) -> _Kind:
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, got a {type(value).__name__}")
    return value


def _none_of(name: str) -> NoReturn:
    raise ValueError(f"{name} must be 1 or more, got 0")
