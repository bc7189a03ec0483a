"""Holds the figures that `sketchbatch-train explore` gathers: sums, counts and small samples of each class."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.drawing import Drawing
from sketchbatch_client.drawings.readers import Bitmaps

from .similarity import Copies, Neighbours

BITMAPS, SIMPLIFIED, RAW = "numpy_bitmap", "simplified", "raw"
"""The three kinds of file, named as Google's folders are."""

NEAR_EMPTY = 0.046
"""Ink, share of the page, that one straight line across it leaves: (255 x 16 + 64 pi) / 304^2, by rasterize's rules."""

LONGEST_S = 60
"""Drawing times are counted up to here; the game stops after 20 s (https://quickdraw.withgoogle.com)."""

_SAMPLED = 24  # drawings kept of each class, recognised and unrecognised, to show


@dataclass(slots=True)
class Sample:
    """A few drawings, every one of those offered as likely as another, in one pass (Vitter's algorithm R)."""

    size: int
    offered: int = 0
    drawings: list[Drawing] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - the same page each time

    def offer(self, drawing: Drawing) -> None:
        """Keeps the drawing, perhaps in place of another."""
        self.offered += 1
        if len(self.drawings) < self.size:
            self.drawings.append(drawing)
        elif (place := self._random.randrange(self.offered)) < self.size:
            self.drawings[place] = drawing


@dataclass(slots=True)
class StrokeFigures:
    """What one .ndjson file holds, counted drawing by drawing."""

    path: Path
    drawings: int = 0
    recognised: int = 0
    countries: Counter[str] = field(default_factory=Counter)
    recognised_in: Counter[str] = field(default_factory=Counter)
    """Recognised drawings by country."""
    hours: Counter[int] = field(default_factory=Counter)
    """Drawings by hour of the day, 0 to 23, UTC."""
    days: Counter[str] = field(default_factory=Counter)
    """Drawings by date, YYYY-MM-DD, UTC."""
    strokes: Counter[int] = field(default_factory=Counter)
    """Drawings by number of strokes."""
    points: Counter[int] = field(default_factory=Counter)
    """Drawings by number of points, all strokes together."""
    tenths: Counter[int] = field(default_factory=Counter)
    """Drawings by tenths of a second from first to last point, raw files only; the last is `LONGEST_S` or more."""
    malformed: int = 0
    """Lines left out."""
    first_malformed: str = ""
    """The first of them: `line: reason`."""
    named: Sample = field(default_factory=lambda: Sample(_SAMPLED))
    """Some that the game recognised."""
    unnamed: Sample = field(default_factory=lambda: Sample(_SAMPLED))
    """Some that it did not."""

    def __len__(self) -> int:
        return self.drawings

    def add(self, drawing: Drawing) -> None:
        """Counts one drawing."""
        self.drawings += 1
        self.recognised += drawing.is_recognized
        if drawing.country:
            self.countries[drawing.country] += 1
            self.recognised_in[drawing.country] += drawing.is_recognized
        if drawing.drawn_at:
            drawn_at = datetime.fromtimestamp(drawing.drawn_at, UTC)
            self.hours[drawn_at.hour] += 1
            self.days[drawn_at.date().isoformat()] += 1
        self.strokes[len(drawing.strokes)] += 1
        self.points[sum(len(stroke[0]) for stroke in drawing.strokes)] += 1
        if has_times(drawing):
            self.tenths[round(10 * min(seconds(drawing), LONGEST_S))] += 1
        (self.named if drawing.is_recognized else self.unnamed).offer(drawing)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitmapFigures:
    """What one .npy file holds."""

    bitmaps: Bitmaps
    """uint8, (rows, 28, 28), still in the file, unless drawn."""
    is_drawn: bool
    """Drawn here from the first strokes, as Google draws them, for want of a .npy file."""
    mean: NDArray[np.float64]
    """(28, 28), 0 = paper, 255 = ink."""
    deviation: NDArray[np.float64]
    """(28, 28), standard deviation of each pixel over the drawings."""
    ink: Counter[int]
    """Bitmaps by ink, in thousandths of the page."""
    digests: NDArray[np.uint64]
    """(rows,), BLAKE2b of each bitmap, to find copies by."""
    near_empty: int
    """Bitmaps with less ink than `NEAR_EMPTY`."""
    emptiest: tuple[tuple[int, float], ...]
    """Row and ink (share of the page) of those with the least, least first."""

    def __len__(self) -> int:
        return len(self.bitmaps)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """All that is known of one class; a part is None where its file is absent, or has no drawing."""

    label: str
    simplified: StrokeFigures | None
    raw: StrokeFigures | None
    bitmaps: BitmapFigures | None

    @property
    def strokes(self) -> StrokeFigures | None:
        """Those of the simplified file, or else of the raw one."""
        return self.simplified or self.raw

    @property
    def parts(self) -> list[StrokeFigures | BitmapFigures]:
        """What there is."""
        return [part for part in (self.simplified, self.raw, self.bitmaps) if part]

    def part(self, kind: str) -> StrokeFigures | BitmapFigures | None:
        """The part that a kind of file gives."""
        return {SIMPLIFIED: self.simplified, RAW: self.raw, BITMAPS: self.bitmaps}[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All figures of a folder."""

    folder: Path
    source: str
    """Where the drawings come from, for people."""
    classes: tuple[ClassFigures, ...]
    copies: Copies | None
    """Class indices are those of `with_bitmaps`; None without bitmaps."""
    neighbours: Neighbours | None
    """Class indices are those of `with_bitmaps`; None without bitmaps of two classes."""

    @property
    def with_bitmaps(self) -> tuple[ClassFigures, ...]:
        """The classes that have bitmaps."""
        return tuple(each for each in self.classes if each.bitmaps)

    @property
    def with_strokes(self) -> dict[str, int]:
        """Drawings with strokes, by class, where there are any."""
        return {each.label: each.strokes.drawings for each in self.classes if each.strokes}

    @property
    def recognised(self) -> dict[str, int]:
        """Those of `with_strokes` that the game recognised."""
        return {each.label: each.strokes.recognised for each in self.classes if each.strokes}

    @property
    def drawings(self) -> int:
        """Of each class those of its longest file: the kinds hold the same drawings."""
        return sum(max((len(part) for part in each.parts), default=0) for each in self.classes)

    def counts(self, name: str) -> dict[str, Counter[Any]]:
        """A counter of `StrokeFigures` by class, where it has counted any; times come from raw files."""
        counted = {each.label: each.raw if name == "tenths" else each.strokes for each in self.classes}
        return {label: count for label, own in counted.items() if own and (count := getattr(own, name))}

    def points(self, kind: str) -> dict[str, Counter[int]]:
        """Points of the drawings by class, of one kind of file alone: raw ones have many more."""
        own = {each.label: each.part(kind) for each in self.classes}
        return {label: part.points for label, part in own.items() if isinstance(part, StrokeFigures)}

    def lacking(self, kind: str) -> list[str]:
        """The classes that have no file of this kind, nor, for a simplified one, a raw one that tells the same."""
        found = {each.label: each.strokes if kind == SIMPLIFIED else each.part(kind) for each in self.classes}
        return [label for label, part in found.items() if part is None or _is_drawn(part)]


def _is_drawn(part: StrokeFigures | BitmapFigures) -> bool:
    return isinstance(part, BitmapFigures) and part.is_drawn


def has_times(drawing: Drawing) -> bool:
    """Whether it says when each point was drawn, as raw files do."""
    return all(len(stroke) == 3 for stroke in drawing.strokes)


def seconds(drawing: Drawing) -> float:
    """From the first point to the last, pauses included; of a drawing that `has_times`."""
    times = [time for stroke in drawing.strokes for time in (stroke[2][0], stroke[2][-1])]
    return max(0.0, (max(times) - min(times)) / 1000)


def quantile(counts: Counter[int], share: float) -> int:
    """The least value that at least `share` of those counted do not exceed."""
    values = sorted(counts)
    reached = np.cumsum([counts[value] for value in values])
    return values[int(np.searchsorted(reached, share * reached[-1]))]


def differ(hits: Sequence[int], of: Sequence[int]) -> bool:
    """Whether shares differ by more than chance would make them: chi-squared, at about 1 %."""
    number = np.array(of, np.float64)
    overall = sum(hits) / max(1, number.sum())
    freedom = len(number) - 1
    if freedom < 1 or not 0 < overall < 1:
        return False
    chi2 = float(np.sum((np.array(hits) - number * overall) ** 2 / (number * overall * (1 - overall))))
    # The 99 % quantile by Wilson and Hilferty 1931, doi:10.1073/pnas.17.12.684.
    return bool(chi2 > freedom * (1 - 2 / (9 * freedom) + 2.326 * (2 / (9 * freedom)) ** 0.5) ** 3)
