"""Define the statistics that `exploring` collects of the drawings of each class: sums, counts and small samples."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sketchbatch_client.drawings.drawing import Drawing
from sketchbatch_client.drawings.readers import BitmapFile, Bitmaps

from .similarity import Copies, Neighbours

BITMAPS, SIMPLIFIED, RAW = "numpy_bitmap", "simplified", "raw"
"""The three kinds of files, which have the names of Google's folders."""

NEAR_EMPTY = 0.046
"""Share of the page that one straight line across it covers: (255 x 16 + 64 pi) / 304^2.

`rasterize` draws lines of up to 255 units, 16 units wide, with round ends, on a page of 304 x 304 units.
"""

MAX_DURATION_S = 60
"""Longest counted drawing time in seconds; the game stops after 20 s (https://quickdraw.withgoogle.com)."""

_SAMPLE_SIZE = 24  # of each class, at most this many drawings and as many unrecognised ones are kept


@dataclass(slots=True)
class Sample:
    """A uniform random sample of the offered drawings, in one pass (Vitter's algorithm R)."""

    size: int
    offered: int = 0
    drawings: list[Drawing] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - pages are reproducible

    def offer(self, drawing: Drawing) -> None:
        """Add the drawing to the sample, or replace another drawing by it, or ignore it."""
        self.offered += 1
        if len(self.drawings) < self.size:
            self.drawings.append(drawing)
        elif (index := self._random.randrange(self.offered)) < self.size:
            self.drawings[index] = drawing


@dataclass(slots=True)
class StrokeStatistics:
    """Counts of the drawings of one .ndjson file."""

    drawings: int = 0
    flagged: int = 0
    """Number of drawings of which it is known whether the game recognised them."""
    recognized: int = 0
    countries: Counter[str] = field(default_factory=Counter)
    """Number of drawings by country code."""
    flagged_in: Counter[str] = field(default_factory=Counter)
    """Number of drawings with a known recognised flag by country code."""
    recognized_in: Counter[str] = field(default_factory=Counter)
    """Number of recognised drawings by country code."""
    hours: Counter[int] = field(default_factory=Counter)
    """Number of drawings by hour of the day, 0 to 23, UTC."""
    days: Counter[str] = field(default_factory=Counter)
    """Number of drawings by date, YYYY-MM-DD, UTC."""
    strokes: Counter[int] = field(default_factory=Counter)
    """Number of drawings by number of strokes."""
    points: Counter[int] = field(default_factory=Counter)
    """Number of drawings by number of points in all strokes."""
    durations: Counter[int] = field(default_factory=Counter)
    """Number of drawings by drawing time in units of 0.1 s; longer times count as MAX_DURATION_S; raw files only."""
    sample: Sample = field(default_factory=lambda: Sample(_SAMPLE_SIZE))
    """Sample of the drawings that were recognised, or of which it is unknown."""
    other_sample: Sample = field(default_factory=lambda: Sample(_SAMPLE_SIZE))
    """Sample of the drawings that were not recognised."""

    def __len__(self) -> int:
        return self.drawings

    def add(self, drawing: Drawing) -> None:
        """Count one drawing."""
        self.drawings += 1
        is_flagged, is_recognized = drawing.is_recognized is not None, bool(drawing.is_recognized)
        self.flagged += is_flagged
        self.recognized += is_recognized
        if drawing.country:
            self.countries[drawing.country] += 1
            self.flagged_in[drawing.country] += is_flagged
            self.recognized_in[drawing.country] += is_recognized
        if drawing.drawn_at:
            drawn_at = datetime.fromtimestamp(drawing.drawn_at, UTC)
            self.hours[drawn_at.hour] += 1
            self.days[drawn_at.date().isoformat()] += 1
        self.strokes[len(drawing.strokes)] += 1
        self.points[sum(len(stroke[0]) for stroke in drawing.strokes)] += 1
        if has_times(drawing):
            self.durations[round(10 * min(duration_s(drawing), MAX_DURATION_S))] += 1
        (self.other_sample if drawing.is_recognized is False else self.sample).offer(drawing)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitmapStatistics:
    """Sums and counts of the bitmaps of one class."""

    bitmaps: BitmapFile | Bitmaps
    """The bitmaps of the class: uint8, (rows, 28, 28). Those of a .npy file are read from it on access."""
    is_drawn: bool
    """Whether the bitmaps were rendered from the first drawings of a stroke file, because there is no .npy file."""
    mean: NDArray[np.float64]
    """Mean of each pixel over the drawings, (28, 28), 0 = paper, 255 = ink."""
    deviation: NDArray[np.float64]
    """Standard deviation of each pixel over the drawings, (28, 28)."""
    ink: Counter[int]
    """Number of bitmaps by ink, in thousandths of the page."""
    digests: NDArray[np.uint64]
    """(rows,), BLAKE2b digest of each bitmap; copies have equal digests."""
    near_empty: int
    """Number of bitmaps with less ink than NEAR_EMPTY."""
    emptiest: tuple[tuple[int, float], ...]
    """Row and ink (share of the page) of the bitmaps with the least ink, least first."""

    def __len__(self) -> int:
        return len(self.bitmaps)


class Skipped(NamedTuple):
    """The malformed lines, rows and pictures of one file or folder of a class, which were skipped."""

    name: str
    """Name of the file or folder."""
    number: int
    first: str
    """Place of the first of them, and the reason for skipping it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStatistics:
    """Statistics of one class, separately for each file; None if the file does not exist or has no drawing."""

    label: str
    simplified: StrokeStatistics | None
    raw: StrokeStatistics | None
    bitmaps: BitmapStatistics | None
    skipped: Mapping[str, Skipped] = field(default_factory=dict)
    """What was skipped, by kind of file; in the whole file, also if only its first drawings are read."""

    @property
    def strokes(self) -> StrokeStatistics | None:
        """Statistics of the simplified file or, if the class has none, of the raw file."""
        return self.simplified or self.raw

    @property
    def parts(self) -> list[StrokeStatistics | BitmapStatistics]:
        """The statistics of each file that has drawings."""
        return [part for part in (self.simplified, self.raw, self.bitmaps) if part]

    def part(self, kind: str) -> StrokeStatistics | BitmapStatistics | None:
        """Return the statistics of the file of this kind."""
        return {SIMPLIFIED: self.simplified, RAW: self.raw, BITMAPS: self.bitmaps}[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderStatistics:
    """Statistics of all classes of a folder."""

    folder: Path
    source: str
    """Origin of the drawings."""
    classes: tuple[ClassStatistics, ...]
    copies: Copies | None
    """Equal bitmaps; None if no class has bitmaps. Class indices are positions in `with_bitmaps`."""
    neighbours: Neighbours | None
    """Similar classes; None if fewer than two classes have bitmaps. Class indices are positions in `with_bitmaps`."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Number of files of the folder that were not read, by ending."""

    @property
    def with_bitmaps(self) -> dict[str, BitmapStatistics]:
        """Bitmap statistics by label, for classes with bitmaps."""
        return {each.label: each.bitmaps for each in self.classes if each.bitmaps}

    @property
    def with_strokes(self) -> dict[str, StrokeStatistics]:
        """Stroke statistics by label, for classes with strokes."""
        return {each.label: each.strokes for each in self.classes if each.strokes}

    @property
    def drawings(self) -> int:
        """Number of drawings. The longest file of a class counts, because all its files have the same drawings."""
        return sum(max((len(part) for part in each.parts), default=0) for each in self.classes)

    def counts(self, name: str, kind: str = "") -> dict[str, Counter[Any]]:
        """Return the counter `name` of `StrokeStatistics` for each label, without empty counters.

        `kind` selects the simplified or the raw files; without it, `ClassStatistics.strokes` selects the file.
        """
        parts = {each.label: each.part(kind) if kind else each.strokes for each in self.classes}
        return {
            label: counter
            for label, part in parts.items()
            if isinstance(part, StrokeStatistics) and (counter := getattr(part, name))
        }

    def lacking(self, kind: str) -> list[str]:
        """Return the labels without a file of this kind; a raw file counts as a simplified file, too."""
        parts = {each.label: each.strokes if kind == SIMPLIFIED else each.part(kind) for each in self.classes}
        return [
            label
            for label, part in parts.items()
            if part is None or (isinstance(part, BitmapStatistics) and part.is_drawn)
        ]


def has_times(drawing: Drawing) -> bool:
    """Return whether each point has a time, as in raw files."""
    return all(len(stroke) == 3 for stroke in drawing.strokes)


def duration_s(drawing: Drawing) -> float:
    """Return the seconds between first and last point, with pauses, of a drawing that `has_times`."""
    times = [time for stroke in drawing.strokes for time in (stroke[2][0], stroke[2][-1])]
    return max(0.0, (max(times) - min(times)) / 1000)


def together(counts: Mapping[str, Counter[Any]]) -> Counter[Any]:
    """Return the sum of the counters of all classes."""
    return sum(counts.values(), Counter())


def quantile(counts: Counter[int], share: float) -> int:
    """Return the lowest value that at least `share` of the counted drawings do not exceed."""
    values = sorted(counts)
    reached = np.cumsum([counts[value] for value in values])
    return values[int(np.searchsorted(reached, share * reached[-1]))]


def differ(hits: Sequence[int], totals: Sequence[int]) -> bool:
    """Return whether the shares hits / totals differ by more than chance: chi-squared test, level of about 1 %."""
    number = np.array(totals, np.float64)
    overall = sum(hits) / max(1, number.sum())
    freedom = len(number) - 1
    if freedom < 1 or not 0 < overall < 1:
        return False
    chi2 = float(np.sum((np.array(hits) - number * overall) ** 2 / (number * overall * (1 - overall))))
    # 99 % quantile of chi-squared, approximation by Wilson and Hilferty 1931, doi:10.1073/pnas.17.12.684
    return bool(chi2 > freedom * (1 - 2 / (9 * freedom) + 2.326 * (2 / (9 * freedom)) ** 0.5) ** 3)
