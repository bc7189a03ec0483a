"""Reads the parts of a job as batches for the service: in order, some ahead, strokes and pictures by other processes.

Flow: parts -> segments -> blocks, each read by whoever has time -> batches of about a request's rows.
"""

import multiprocessing
import os
import signal
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..drawings.readers import Bitmaps
from ..errors import SketchbatchError
from .plan import Plan
from .sources import Block, Source

BLOCK_ROWS = 1024
"""Rows that are read at once: a request's worth. Strokes take an eighth of a second with cairo."""

_AHEAD = 3  # blocks for each reading process: one is read, one waits to be, one to be sent
_WORTHWHILE = 4 * BLOCK_ROWS  # rows: fewer are drawn sooner than processes are started


class Piece(NamedTuple):
    """A block, and where it stands."""

    part: int
    source: int
    """Its place in `Plan.inputs`."""
    start: int
    """The first of its rows in the source, good or bad."""
    offset: int
    """Of that row in the part."""
    block: Block


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows of one part that are sent together."""

    part: int
    pieces: list[Piece]
    bitmaps: Bitmaps
    """The good rows of all pieces, (rows, 28, 28); none where all are rejects."""


class _Place(NamedTuple):
    part: int
    source: int
    start: int
    stop: int
    offset: int


class Reading:
    """Reads for as long as it is open. With `readers` processes of its own, if that is worth while.

    Args:
        plan: What is read.
        sources: `plan.inputs`, opened.
        readers: Processes that draw strokes and pictures.
    """

    def __init__(self, plan: Plan, sources: list[Source], readers: int) -> None:
        self._plan = plan
        self._sources = sources
        drawn_rows = sum(len(source) for source in sources if source.is_drawn)
        self._readers = readers if drawn_rows >= _WORTHWHILE else 0
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Reading":
        if self._readers:
            drawn = {place: source for place, source in enumerate(self._sources) if source.is_drawn}
            self._pool = ProcessPoolExecutor(
                self._readers,
                mp_context=multiprocessing.get_context("spawn"),  # never fork after gRPC has begun
                initializer=_begin,
                initargs=(drawn,),
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def batches(self, parts: Iterable[int]) -> Iterator[Batch]:
        """The rows of these parts, in order; a batch belongs to one part.

        Raises:
            FileRefused: An input cannot be read any more.
            SketchbatchError: A reading process ended.
        """
        waiting: list[Piece] = []
        for piece in self._pieces(parts):
            is_next_part = waiting and waiting[0].part != piece.part
            if is_next_part or sum(len(each.block.rows) for each in waiting) >= BLOCK_ROWS:
                yield _together(waiting)
                waiting = []
            waiting.append(piece)
        if waiting:
            yield _together(waiting)

    def digest(self, part: int) -> int:
        """What `digest_of` gives for all pieces of a part, read again."""
        return digest_of(self._pieces([part]))

    def _pieces(self, parts: Iterable[int]) -> Iterator[Piece]:
        ahead: deque[tuple[_Place, Block | Future[Block]]] = deque()
        for place in self._places(parts):
            ahead.append((place, self._read(place)))
            if len(ahead) > self._readers * _AHEAD:
                yield _piece(*ahead.popleft())
        while ahead:
            yield _piece(*ahead.popleft())

    def _places(self, parts: Iterable[int]) -> Iterator[_Place]:
        for part in parts:
            offset = 0
            for source, first, end in self._plan.segments(part):
                for start in range(first, end, BLOCK_ROWS):
                    stop = min(start + BLOCK_ROWS, end)
                    yield _Place(part, source, start, stop, offset)
                    offset += stop - start

    def _read(self, place: _Place) -> Block | Future[Block]:
        if self._pool and self._sources[place.source].is_drawn:
            return self._pool.submit(_block, place.source, place.start, place.stop)
        return self._sources[place.source].block(place.start, place.stop)


def digest_of(pieces: Iterable[Piece]) -> int:
    """Of all that was read for some consecutive pieces."""
    return zlib.crc32(b"".join(piece.block.digest.to_bytes(4, "little") for piece in pieces))


def _piece(place: _Place, block: Block | Future[Block]) -> Piece:
    try:
        block = block if isinstance(block, Block) else block.result()
    except BrokenProcessPool as exc:
        raise SketchbatchError("a process that read drawings was ended (out of memory?); run again to go on") from exc
    return Piece(place.part, place.source, place.start, place.offset, block)


def _together(pieces: list[Piece]) -> Batch:
    blocks = [piece.block.bitmaps for piece in pieces]
    return Batch(pieces[0].part, pieces, blocks[0] if len(blocks) == 1 else np.concatenate(blocks))


_opened: dict[int, Source] = {}
"""Of a reading process: the sources it may be asked for."""


def _begin(sources: dict[int, Source]) -> None:
    """First thing in a reading process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent says when to end
    _opened.update(sources)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its processes: they would wait for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _block(source: int, start: int, stop: int) -> Block:
    return _opened[source].block(start, stop)
