"""Scores the drawings of many files into one: never a row lost, never one twice, however often it is stopped.

Flow: inputs -> `plan` -> parts that are not finished yet -> `reading` -> `Client.score` -> `parts` -> `outputs`.

Parts are scored in order, each kept as soon as it is whole. The output is written along with them, from the first part
on, under another name until it is whole: killed at any moment, the same command goes on with the next part and ends in
the same bytes. A manifest beside the output says that it is finished, and what it was made from.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow as pa

from ..atomic import replacing, room_for
from ..drawings.readers import Bitmaps
from ..errors import FileRefused, JobRefused
from ..rpc.classification import Classification, ModelInfo, joined
from ..rpc.client import Client
from .block_reader import Batch, Reading, digest_of
from .inputs import find_sources
from .manifest import Manifest, path_beside
from .outputs import reject_line, schema, table, writing
from .parts import Part, Parts, held
from .plan import ALL, Input, Plan, ScoreOptions, Shard, difference, good_part_rows
from .sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a person asks for."""

    inputs: Sequence[str]
    """Files, folders, globs, or "-" = standard input."""
    kind: str = "parquet"
    """One of `outputs.KINDS`; "npy" needs all scores."""
    options: ScoreOptions = field(default_factory=ScoreOptions)
    shard: Shard = ALL
    part_rows: int = 0
    """Rows that are kept at once; 0 = as many as are good for this model. The same for all shards."""
    readers: int = 1
    """Processes that draw strokes and pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended."""

    rows: int
    """Rows written."""
    rejected: int
    """Rows that are no drawing."""
    was_finished: bool = False
    """There was nothing left to do."""


class Watch(Protocol):
    """Is told how far a job has come."""

    def opens(self, source: str) -> None:
        """An input is opened, and its rows are counted."""

    def begins(self, rows: int, rows_done: int) -> None:
        """So many rows there are, good and bad, and so many were done by an earlier run."""

    def advances(self, rows: int) -> None:
        """So many rows more are done."""


def rejects_beside(output: Path) -> Path:
    """Where the rows that are no drawing are listed, if there are any: a line of JSON each."""
    return output.with_name(f"{output.name}.rejects.jsonl")


def write_scores(client: Client, order: Order, output: Path, watch: Watch, *, restart: bool = False) -> Outcome:
    """Scores every drawing of `order` into `output`, or goes on with it where it was stopped.

    `restart` forgets what was done before.

    Raises:
        DiskFull: There is no room to write; run again to go on.
        FileRefused: An input is not what it should be.
        JobRefused: It was begun with other inputs, another model or other options, or another process is at it.
        SketchbatchError: The service did not answer; run again to go on.
    """
    served = client.model(order.options.model_name, order.options.model_version)
    with held(output) as parts:
        if restart:
            parts.clear()
            path_beside(output).unlink(missing_ok=True)
        finished = Manifest.read(output)
        earlier = finished.plan if finished else parts.earlier_plan()
        sources = find_sources(order.inputs, parts.folder, watch.opens)
        plan = _plan(order, sources, _same_version(client, order.options, served, earlier))
        with Reading(plan, sources, order.readers) as reading:
            if earlier:
                digests = {part: parts.digest(part) for part in plan.parts}
                _check_unchanged(output, earlier, plan, reading, dict(finished.digests) if finished else digests)
            if finished:
                return Outcome(rows=finished.rows, rejected=finished.rejected, was_finished=True)
            parts.begin(plan)
            manifest = _Job(client, order.kind, plan, sources, reading, watch).write(output, parts)
    return Outcome(rows=manifest.rows, rejected=manifest.rejected)


def stream_scores(client: Client, order: Order, file: BinaryIO, spool: Path, watch: Watch) -> Iterator[str]:
    """Scores every drawing of `order` into an open file, such as standard output; there is no going on with it.

    Yields each line of rejects. Raises as `write_scores`.
    """
    served = client.model(order.options.model_name, order.options.model_version)
    sources = find_sources(order.inputs, spool, watch.opens)
    plan = _plan(order, sources, served)
    with Reading(plan, sources, order.readers) as reading:
        job = _Job(client, order.kind, plan, sources, reading, watch)
        watch.begins(plan.rows, 0)
        with writing(file, order.kind, plan, job.schema) as output:
            for part in job.scored(plan.parts):
                output.write(part.rows, plan.rows_of(part.number))
                yield from part.rejects


class _Job:
    """A plan, and what it takes to carry it out."""

    def __init__(
        self, client: Client, kind: str, plan: Plan, sources: list[Source], reading: Reading, watch: Watch
    ) -> None:
        self._client = client
        self._kind = kind
        self._plan = plan
        self._sources = sources
        self._reading = reading
        self._watch = watch
        self.schema = schema(plan, has_key_ids=any(source.has_key_ids for source in sources))

    def write(self, output: Path, parts: Parts) -> Manifest:
        """All parts into `output`, those that are not finished being scored first."""
        plan = self._plan
        digests = {part: parts.digest(part) for part in plan.parts}
        missing = [part for part in plan.parts if digests[part] is None]
        self._watch.begins(plan.rows, plan.rows - sum(map(plan.rows_of, missing)))
        partial, rejects = parts.folder / "output.partial", parts.folder / "rejects.partial"
        rows = rejected = 0
        with (
            room_for(output),
            partial.open("wb") as file,
            rejects.open("w", encoding="utf-8") as reject_file,
            writing(file, self._kind, plan, self.schema) as writer,
        ):
            scored = self.scored(missing)
            for number in plan.parts:
                if digests[number] is None:
                    part = next(scored)
                    parts.save(part)
                    digests[number] = part.digest
                else:
                    part = parts.read(number)
                writer.write(part.rows, plan.rows_of(number))
                reject_file.writelines(part.rejects)
                rows, rejected = rows + len(part.rows), rejected + len(part.rejects)
        done = {part: digest for part, digest in digests.items() if digest is not None}
        manifest = Manifest(plan=plan, digests=done, rows=rows, rejected=rejected, output_bytes=partial.stat().st_size)
        if rejected and not rows and plan.shard == ALL:
            first = json.loads(rejects.read_text(encoding="utf-8").partition("\n")[0])["reason"]
            parts.clear()
            raise FileRefused(f"none of {rejected:,} rows is a drawing; the first: {first}")
        with replacing(path_beside(output)) as described:  # whole before anything is in its place, and there last
            manifest.write(described)
            rejects_beside(output).unlink(missing_ok=True)
            if rejected:
                rejects.replace(rejects_beside(output))
            partial.replace(output)
        parts.clear()
        return manifest

    def scored(self, numbers: Iterable[int]) -> Iterator[Part]:
        """These parts, scored, in order."""
        batches: list[tuple[Batch, Classification | None]] = []
        rows = 0
        for batch, result in self._results(self._reading.batches(numbers)):
            batches.append((batch, result))
            batch_rows = sum(len(piece.block.rows) + len(piece.block.rejects) for piece in batch.pieces)
            self._watch.advances(batch_rows)
            rows += batch_rows
            if rows == self._plan.rows_of(batch.part):
                yield self._part(batches)
                batches, rows = [], 0

    def _part(self, batches: list[tuple[Batch, Classification | None]]) -> Part:
        """Raises JobRefused if the model is not the one that the plan was made for any more."""
        plan = self._plan
        if self._client.model(plan.model, plan.version).digest != plan.model_digest:
            raise JobRefused(
                f"the service changed {plan.model} version {plan.version} meanwhile; --restart begins anew"
            )
        tables = [table(self.schema, batch, result, self._sources) for batch, result in batches if result]
        pieces = [piece for batch, _ in batches for piece in batch.pieces]
        return Part(
            number=pieces[0].part,
            rows=pa.Table.from_batches(tables, self.schema).combine_chunks(),
            rejects=[reject_line(reject) for piece in pieces for reject in piece.block.rejects],
            digest=digest_of(pieces),
        )

    def _results(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Classification | None]]:
        """Each batch with its result; None where all of its rows are rejects."""
        sent: deque[Batch] = deque()

        def bitmaps() -> Iterator[Bitmaps]:
            for batch in batches:
                sent.append(batch)
                if len(batch.bitmaps):
                    yield batch.bitmaps

        options = self._plan.options
        top_k = 0 if options.with_all_scores else options.top_k
        names = {"model_name": options.model_name, "model_version": options.model_version}
        got: list[Classification] = []
        with closing(self._client.score(bitmaps(), top_k=top_k, **names)) as results:  # type: ignore[type-var]  # a generator
            for result in results:
                while not len(sent[0].bitmaps):
                    yield sent.popleft(), None
                got.append(result)
                if sum(map(len, got)) == len(sent[0].bitmaps):
                    yield sent.popleft(), joined(got)
                    got = []
        while sent:
            yield sent.popleft(), None


def _plan(order: Order, sources: list[Source], served: ModelInfo) -> Plan:
    options = order.options
    return Plan(
        inputs=tuple(Input(source=source.name, rows=len(source), stamp=source.stamp) for source in sources),
        model=served.name,
        version=served.version,
        model_digest=served.digest,
        labels=served.labels,
        top_k=options.top_k,
        with_all_scores=options.with_all_scores,
        part_rows=order.part_rows or good_part_rows(len(served.labels) if options.with_all_scores else options.top_k),
        shard=order.shard,
    )


def _same_version(client: Client, options: ScoreOptions, served: ModelInfo, earlier: Plan | None) -> ModelInfo:
    """A job that named no version goes on with the one it was begun with, as long as it is served."""
    if earlier and not options.model_version and served.name == earlier.model and earlier.version in served.versions:
        return client.model(served.name, earlier.version)
    return served


def _check_unchanged(output: Path, earlier: Plan, plan: Plan, reading: Reading, digests: dict[int, int | None]) -> None:
    """Raises JobRefused unless the finished parts would come out the same today."""
    what = difference(earlier, plan)
    if not what:
        pairs = enumerate(zip(earlier.inputs, plan.inputs, strict=True))
        touched = {source for source, (was, is_now) in pairs if was.stamp != is_now.stamp}
        for part, digest in digests.items():
            sources = touched & {segment.source for segment in plan.segments(part)}
            if digest is not None and sources and reading.digest(part) != digest:
                what = f"{' or '.join(plan.inputs[source].source for source in sorted(sources))} has other contents"
                break
    if what:
        raise JobRefused(
            f"{output} was begun otherwise: {what}; put that back, name another output, or say --restart to begin anew"
        )
