"""Describe a job: its inputs, model and options, and how its rows are divided into parts and shards.

Two runs of the same job have equal plans; `difference` describes how two plans differ. Rows are numbered across all
inputs. A part is a range of rows, and a shard is a range of parts. A manifest stores a plan as JSON.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate, zip_longest
from typing import Any, NamedTuple, TypeVar

FORMAT = 1  # version of the manifest format

# Fewest parts of a large job. Two shards of a job may differ by one part, which should be a small share of their rows.
_PARTS = 128
_MAX_PART_ROWS = 65536
_MAX_PART_BYTES = 16 << 20  # of scores and labels; to write a part takes several times as much memory
_MIN_PART_ROWS = 1024  # about as many rows as one request; larger parts have a multiple of this number

MAX_SCORE_COLUMNS = 1000
"""Most scores of a row that have a column each; a job with more scores per row is wide (see `outputs`)."""

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """Selects the model of a job, and which of its scores are written."""

    top_k: int = 1  # number of best classes to write for each row
    with_all_scores: bool = False  # write the scores of all classes as well; `top_k` is then 1
    reject: float | None = None
    """Coverage of the model's threshold below which a row has an empty label; None = every row has a label."""
    model_name: str = ""
    """"" = the service's default model."""
    model_version: str = ""
    """"" = the newest version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One source as recorded in a manifest."""

    source: str
    rows: int
    stamp: str  # text that changes whenever the input is changed
    start: int = 0  # first row; the rows before it are in the output already, see `appending`


class Segment(NamedTuple):
    """A range of rows of one source."""

    source: int  # index in `Plan.inputs`
    start: int
    stop: int


PartDigest = tuple[int, ...]
"""For each segment of a part, the CRC-32 of its rows: shows which inputs have changed."""


class Shard(NamedTuple):
    """Selects the parts that one of several commands scores: shard `number` of `shards`."""

    number: int  # from 0
    shards: int


ALL = Shard(0, 1)  # all parts: the shard of a job that is not divided


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rows of one job and how they are scored."""

    inputs: tuple[Input, ...]
    model: str
    version: str
    model_digest: str  # SHA-256 of the model file, in hex
    labels: tuple[str, ...]
    top_k: int
    with_all_scores: bool
    reject: float | None = None  # `ScoreOptions.reject`
    reject_below: float | None = None
    """The model's threshold of that coverage: a row whose highest score is lower has an empty label."""
    part_rows: int  # number of rows of each part; the last part may have fewer
    shard: Shard = ALL
    column: str = ""  # `InputOptions.column`
    scale: float = 0.0  # `InputOptions.scale`
    score_kind: str = ""
    """`ModelInfo.score_kind` of the model; "" = unknown. No difference between jobs: a newer service states it."""
    renderer: str = ""
    """`render_digest.renderer()`, if strokes or pictures are rendered; "" = not rendered, or unknown."""
    folder: str = ""
    """The working directory, to which relative names of sources belong; "" = unknown. No difference between jobs."""

    @property
    def options(self) -> ScoreOptions:
        """Options that name exactly this version of the model."""
        return ScoreOptions(
            top_k=self.top_k,
            with_all_scores=self.with_all_scores,
            reject=self.reject,
            model_name=self.model,
            model_version=self.version,
        )

    @property
    def scores_per_row(self) -> int:
        """Number of scores that are stored for each row."""
        return len(self.labels) if self.with_all_scores else self.top_k

    @property
    def is_wide(self) -> bool:
        """Whether a row has too many scores for a column each."""
        return self.scores_per_row > MAX_SCORE_COLUMNS

    @property
    def all_rows(self) -> int:
        """Number of rows of all shards."""
        return self._ends[-1] if self._ends else 0

    @cached_property
    def _ends(self) -> list[int]:
        """The number of rows of each input and of all inputs before it."""
        return list(accumulate(each.rows for each in self.inputs))

    @property
    def parts(self) -> range:
        """Numbers of the parts of this shard; each part belongs to exactly one shard."""
        all_parts = -(-self.all_rows // self.part_rows)
        number, shards = self.shard
        return range(all_parts * number // shards, all_parts * (number + 1) // shards)

    @property
    def rows(self) -> int:
        """Number of rows of this shard."""
        return sum(map(self.rows_of, self.parts))

    def rows_of(self, part: int) -> int:
        """Return the number of rows of a part, rejects included."""
        return min(self.part_rows, self.all_rows - part * self.part_rows)

    def segments(self, part: int) -> list[Segment]:
        """Return the rows of a part, as one range of rows for each source that the part touches."""
        start = part * self.part_rows
        stop = start + self.rows_of(part)
        segments = []
        for source in range(bisect_right(self._ends, start), len(self.inputs)):
            each, first = self.inputs[source], self._ends[source] - self.inputs[source].rows
            if first >= stop:
                break
            begin, end, offset = max(start, first), min(stop, first + each.rows), each.start - first
            if begin < end:
                segments.append(Segment(source, begin + offset, end + offset))
        return segments

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that a manifest stores."""
        return {"format": FORMAT, **asdict(self), "shard": list(self.shard)}

    @classmethod
    def from_json(cls, manifest: dict[str, Any]) -> "Plan":
        """Read a plan from the JSON object of a manifest. Raises ValueError if this client cannot read it."""
        try:
            if manifest["format"] != FORMAT:
                raise ValueError(f"the format must be {FORMAT}, got {manifest['format']!r:.60}")
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
                reject=_checked_or_none(float, manifest.get("reject")),
                reject_below=_checked_or_none(float, manifest.get("reject_below")),
                part_rows=whole_number(manifest["part_rows"], least=1),
                shard=Shard(number, shards),
                column=_checked(str, manifest.get("column", "")),  # manifests of older clients have none
                scale=_checked(float, manifest.get("scale", 0.0)),
                score_kind=_checked(str, manifest.get("score_kind", "")),
                renderer=_checked(str, manifest.get("renderer", "")),
                folder=_checked(str, manifest.get("folder", "")),
            )
        except (KeyError, TypeError) as exc:
            raise ValueError(f"not the manifest of a job: {exc!r}") from exc


def whole_number(value: object, *, least: int = 0) -> int:
    """Return `value` if it is an integer from `least` to 2**63 - 1; otherwise raise ValueError."""
    if type(value) is not int or not least <= value < 1 << 63:
        raise ValueError(f"expected a whole number from {least}, got {value!r:.60}")
    return value


def row_bytes(options: ScoreOptions, labels: Sequence[str]) -> int:
    """Return the memory that the scores and labels of one row take in a part; at least 1."""
    if options.with_all_scores:
        return max(1, 4 * len(labels))
    label_bytes = 4 + sum(map(len, labels)) // max(1, len(labels))
    return options.top_k * (4 + label_bytes)


def default_part_rows(all_rows: int, row_bytes: int) -> int:
    """Return the number of rows of a part.

    The number is as large as possible, because each part costs a file. It is limited by memory, and so that a large job
    has at least _PARTS parts.

    The number of shards has no influence, so that merged shards equal the output of a job without shards.
    """
    most = max(1, min(_MAX_PART_ROWS, _MAX_PART_BYTES // row_bytes, max(_MIN_PART_ROWS, all_rows // _PARTS)))
    return most if most < _MIN_PART_ROWS else most // _MIN_PART_ROWS * _MIN_PART_ROWS


def difference(earlier: Plan, now: Plan) -> str:
    """Describe the first difference between two plans; "" if there is none.

    The stamps of inputs, the kind of scores and the working directory may differ. If the renderer of a plan is unknown,
    it may differ, too.
    """
    if found := _input_difference(earlier.inputs, now.inputs):
        return found
    models = [f"{plan.model} version {plan.version} (digest {plan.model_digest[:12]})" for plan in (earlier, now)]
    values = (
        ("the model", *models),
        ("--top-k", earlier.top_k, now.top_k),
        ("--all-scores", earlier.with_all_scores, now.with_all_scores),
        ("--reject", _rejection(earlier), _rejection(now)),
        ("--column", earlier.column or "the default", now.column or "the default"),
        ("--scale", *(f"{plan.scale:.17g}" if plan.scale else "not given" for plan in (earlier, now))),
        ("--part-rows", earlier.part_rows, now.part_rows),
        ("--shard", "{}/{}".format(*earlier.shard), "{}/{}".format(*now.shard)),
        ("the list of labels", *_first_difference(earlier.labels, now.labels)),
        ("the renderer of strokes and pictures", *_different_renderers(earlier.renderer, now.renderer)),
    )
    return next((f"{name} was {before}, and is now {after}" for name, before, after in values if before != after), "")


def has_new_rows(earlier: Plan, now: Plan) -> bool:
    """Return whether `now` is the same job as `earlier` with more inputs, or with inputs that have more rows."""
    rows = {each.source: each.rows for each in now.inputs}
    has_all = all(rows.get(each.source, 0) >= each.rows for each in earlier.inputs)
    return has_all and now.rows > earlier.rows and not difference(replace(earlier, inputs=()), replace(now, inputs=()))


def _rejection(plan: Plan) -> str:
    return "not given" if plan.reject is None else f"{plan.reject} (score {plan.reject_below})"


def _first_difference(earlier: Sequence[str], now: Sequence[str]) -> tuple[str, str]:
    """Describe two lists of labels by their first different labels; a list may have ten thousand."""
    pairs = enumerate(zip_longest(earlier, now))
    return next(((f"{old!r} at {index}", f"{new!r}") for index, (old, new) in pairs if old != new), ("", ""))


def _different_renderers(earlier: str, now: str) -> tuple[str, str]:
    """Return both renderers if their digests, which precede their names, are known and differ."""
    digests = {renderer.partition(" ")[0] for renderer in (earlier, now) if renderer}
    return (earlier, now) if len(digests) > 1 else ("", "")


def _input_difference(earlier: Sequence[Input], now: Sequence[Input]) -> str:
    for before, after in zip(earlier, now, strict=False):
        if before.source != after.source:
            return f"an input was {before.source}, and is now {after.source}"
        if before.start != after.start:
            return f"{before.source} was scored from row {before.start:,}, and is now scored from row {after.start:,}"
        if before.rows != after.rows:
            return f"{before.source} had {before.rows:,} rows, and now has {after.rows:,}"
    if len(earlier) != len(now):
        return f"the number of inputs was {len(earlier)}, and is now {len(now)}"
    return ""


def _input_from_json(found: dict[str, Any]) -> Input:
    return Input(
        source=_checked(str, found["source"]),
        rows=whole_number(found["rows"]),
        stamp=_checked(str, found["stamp"]),
        start=whole_number(found.get("start", 0)),
    )


def _checked_or_none(kind: type[_Kind], value: object) -> _Kind | None:
    return None if value is None else _checked(kind, value)


def _checked(kind: type[_Kind], value: object) -> _Kind:
    if not isinstance(value, kind):
        raise ValueError(f"expected a {kind.__name__}, got a {type(value).__name__}")
    return value
