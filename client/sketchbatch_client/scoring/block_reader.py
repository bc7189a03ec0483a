"""Read the rows of a job's parts, in order, as arrays to send; reader processes decode strokes and pictures.

Flow: parts -> segments (rows of one source) -> blocks, each read by the next free process -> batches. A batch, here, is
an array of about as many rows as one request has.
"""

import multiprocessing
import os
import signal
import threading
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..drawings.bitmap_arrays import warn_of_ink
from ..drawings.readers import Bitmaps
from ..errors import SketchbatchError
from .inputs import Block, Source
from .plan import PartDigest, Plan, Segment

BLOCK_ROWS = 1024  # rows that are read at once: enough for one request; cairo renders them in an eighth of a second

# Blocks in progress per reader process: one is read, one waits until the process is free, one waits to be sent.
_BLOCKS_AHEAD = 3
_MIN_ROWS_FOR_READERS = 4 * BLOCK_ROWS  # to read fewer rows takes less time than to start reader processes

_MAX_SUSPECT = 5  # most inputs about whose ink there is a warning


class BlockRange(NamedTuple):
    """The rows of one block and their position in the job."""

    part: int
    source: int  # index in `Plan.inputs`
    start: int  # first row in the source
    stop: int
    offset: int  # position of the first row in its part


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows of one part that are sent together."""

    part: int
    blocks: list[tuple[BlockRange, Block]]
    bitmaps: Bitmaps  # the good rows of all blocks, (rows, 28, 28); empty if all rows are rejects

    @property
    def rows(self) -> int:
        """Number of rows, rejects included."""
        return sum(rows.stop - rows.start for rows, _ in self.blocks)


class BlockReader:
    """Reads the blocks of a job. On entry it starts `readers` processes if enough rows are from slow sources.

    `sources` are the opened `plan.inputs`, in the same order.
    """

    def __init__(self, plan: Plan, sources: list[Source], readers: int) -> None:
        self._plan = plan
        self._sources = sources
        slow_rows = sum(len(source) for source in sources if source.is_slow)
        self._readers = readers if slow_rows >= _MIN_ROWS_FOR_READERS else 0
        self._pool: ProcessPoolExecutor | None = None
        self._suspect: set[str] = set()  # names of the sources about whose ink there was a warning

    def __enter__(self) -> "BlockReader":
        if self._readers:
            slow = {index: source for index, source in enumerate(self._sources) if source.is_slow}
            self._pool = ProcessPoolExecutor(
                self._readers,
                mp_context=multiprocessing.get_context("spawn"),  # gRPC does not support fork
                initializer=_start_reader,
                initargs=(slow,),
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def batches(self, parts: Iterable[int]) -> Iterator[Batch]:
        """Yield the rows of these parts, in order; each batch belongs to one part.

        Raises FileRefused if an input can no longer be read, and SketchbatchError if a reader process ended.
        """
        blocks: list[tuple[BlockRange, Block]] = []
        for rows, block in self._blocks(parts):
            is_next_part = blocks and blocks[0][0].part != rows.part
            if is_next_part or sum(len(each.rows) for _, each in blocks) >= BLOCK_ROWS:
                yield _batch_of(blocks)
                blocks = []
            blocks.append((rows, block))
        if blocks:
            yield _batch_of(blocks)

    def digest(self, part: int) -> PartDigest:
        """Read the input rows of a part again; return their part digest."""
        return tuple(map(self._digest, self._plan.segments(part)))

    def changed(self, part: int, digest: PartDigest, touched: Collection[int]) -> list[int]:
        """Read the rows of the sources `touched` in a part again; return the sources whose rows belong to no `digest`.

        `touched` and the result are indices in `Plan.inputs`; other sources need not exist.
        """
        segments = self._plan.segments(part)
        if len(segments) != len(digest):  # that of an older client is one number, the digest of all blocks
            whole = _joined_digest(self._block_digests(segments))
            return [] if digest == (whole,) else sorted({each.source for each in segments}.intersection(touched))
        pairs = zip(segments, digest, strict=True)
        return [each.source for each, own in pairs if each.source in touched and self._digest(each) != own]

    def _digest(self, segment: Segment) -> int:
        return _joined_digest(self._block_digests([segment]))

    def _block_digests(self, segments: Iterable[Segment]) -> Iterator[int]:
        for source, first, end in segments:
            for start in range(first, end, BLOCK_ROWS):
                yield self._sources[source].digest(start, min(start + BLOCK_ROWS, end))

    def _blocks(self, parts: Iterable[int]) -> Iterator[tuple[BlockRange, Block]]:
        ahead: deque[tuple[BlockRange, Block | Future[Block]]] = deque()
        for rows in self._ranges(parts):
            ahead.append((rows, self._read(rows)))
            if len(ahead) > self._readers * _BLOCKS_AHEAD:
                yield self._finished(*ahead.popleft())
        while ahead:
            yield self._finished(*ahead.popleft())

    def _ranges(self, parts: Iterable[int]) -> Iterator[BlockRange]:
        for part in parts:
            offset = 0
            for source, first, end in self._plan.segments(part):
                for start in range(first, end, BLOCK_ROWS):
                    stop = min(start + BLOCK_ROWS, end)
                    yield BlockRange(part, source, start, stop, offset)
                    offset += stop - start

    def _read(self, rows: BlockRange) -> Block | Future[Block]:
        source = self._sources[rows.source]
        if self._pool and source.is_slow:
            with _ignoring_ctrl_c():
                return self._pool.submit(_read_in_reader, rows.source, rows.start, rows.stop)
        return source.block(rows.start, rows.stop)

    def _finished(self, rows: BlockRange, block: Block | Future[Block]) -> tuple[BlockRange, Block]:
        try:
            read = block if isinstance(block, Block) else block.result()
        except BrokenProcessPool as exc:
            raise SketchbatchError(
                "a reader process was killed (out of memory?); run the same command to resume"
            ) from exc
        name = self._sources[rows.source].name
        is_known = name in self._suspect or len(self._suspect) >= _MAX_SUSPECT
        if not is_known and warn_of_ink(read.bitmaps, name):
            self._suspect.add(name)
        return rows, read


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Start processes that do not receive Ctrl-C, which would end their imports with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def digest_of(blocks: Iterable[tuple[BlockRange, Block]]) -> PartDigest:
    """Return the part digest of the part that consists of `blocks`."""
    by_source = groupby(blocks, key=lambda each: each[0].source)
    return tuple(_joined_digest(block.digest for _, block in own) for _, own in by_source)


def _joined_digest(digests: Iterable[int]) -> int:
    return zlib.crc32(b"".join(digest.to_bytes(4, "little") for digest in digests))


def _batch_of(blocks: list[tuple[BlockRange, Block]]) -> Batch:
    bitmaps = [block.bitmaps for _, block in blocks]
    return Batch(blocks[0][0].part, blocks, bitmaps[0] if len(bitmaps) == 1 else np.concatenate(bitmaps))


_reader_sources: dict[int, Source] = {}  # in a reader process: the slow sources, by their index in `Plan.inputs`


def _start_reader(sources: dict[int, Source]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its readers
    _reader_sources.update(sources)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with its parent, because a parent that was killed cannot end its readers."""
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _read_in_reader(source: int, start: int, stop: int) -> Block:
    return _reader_sources[source].block(start, stop)
