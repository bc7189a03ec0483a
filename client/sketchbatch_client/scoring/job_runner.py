"""Score the parts of a plan that are not finished, and write all parts to the partial output of a job."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from ..atomic import room_for
from ..drawings.passed_over import PassedOverList
from ..drawings.readers import Bitmaps
from ..errors import JobRefused
from ..rpc.classification import Classification, joined
from ..rpc.client import Client
from .block_reader import Batch, BlockReader, digest_of
from .inputs import Source
from .manifest import Manifest
from .outputs import reject_line, schema, table, writing
from .parts import Part, Parts
from .plan import Plan
from .score_rows import reject_non_finite, score_batches


class ProgressListener(Protocol):
    """Receives the progress of a job. A subclass overrides the reports that it needs."""

    def opens(self, source: str) -> None:
        """Report that an input is being opened and its rows are being counted."""

    def selects(self, model: str, score_kind: str) -> None:
        """Report the model that scores the rows, and its `ModelInfo.score_kind`."""

    def begins(self, rows: int, rows_done: int) -> None:
        """Report the number of rows, rejects included, and how many of them an earlier run finished."""

    def advances(self, rows: int) -> None:
        """Report that `rows` more rows are finished."""

    def passes_over(self, files: PassedOverList) -> None:
        """Report the files, folders and arrays of the inputs that are not read."""

    def leaves_empty(self, rows: int) -> None:
        """Report that the metadata of `rows` more rows, such as their key, cannot be read."""

    def leaves_unlabelled(self, rows: int) -> None:
        """Report that `rows` more rows have an empty label, because their highest score is below `reject_below`."""


@dataclass(frozen=True)
class JobRunner:
    """Scores the parts of one plan and writes the output."""

    client: Client
    kind: str
    plan: Plan
    sources: list[Source]
    reader: BlockReader
    listener: ProgressListener
    has_key_ids: bool | None = None  # whether the output has a column for keys; None = if a source has keys

    @cached_property
    def schema(self) -> pa.Schema:
        has_key_ids = any(source.has_key_ids for source in self.sources)
        return schema(self.plan, has_key_ids=has_key_ids if self.has_key_ids is None else self.has_key_ids)

    def write(self, output: Path, parts: Parts, passed_over: PassedOverList) -> Manifest:
        """Write all parts to `output.partial` and `rejects.next`, for `output`; score those that are not finished."""
        plan = self.plan
        parts.begin(plan)
        digests = {part: parts.digest(part) for part in plan.parts}
        missing = [part for part in plan.parts if digests[part] is None]
        self.listener.selects(plan.model, plan.score_kind)
        self.listener.begins(plan.rows, plan.rows - sum(map(plan.rows_of, missing)))
        partial, rejects = parts.folder / "output.partial", parts.folder / "rejects.next"
        rows = rejected = unread = unlabelled = 0
        with (
            room_for(output),
            partial.open("wb") as file,
            rejects.open("w", encoding="utf-8") as reject_file,
            writing(file, self.kind, plan, self.schema) as write_rows,
        ):
            scored = self.score_parts(missing)
            for number in plan.parts:
                if digests[number] is None:
                    part = next(scored)
                    parts.save(part)
                    digests[number] = part.digest
                else:
                    part = parts.read(number)
                write_rows(part.rows, plan.rows_of(number))
                reject_file.writelines(part.rejects)
                rows, rejected, unread, unlabelled = (
                    rows + len(part.rows),
                    rejected + len(part.rejects),
                    unread + part.unread_metadata,
                    unlabelled + part.unlabelled,
                )
                self.listener.leaves_empty(part.unread_metadata)
                self.listener.leaves_unlabelled(part.unlabelled)
        done = {part: digest for part, digest in digests.items() if digest is not None}
        return Manifest(
            plan=plan,
            digests=done,
            rows=rows,
            rejected=rejected,
            unread_metadata=unread,
            unlabelled=unlabelled,
            passed_over=passed_over.to_json(),
            has_key_ids="key_id" in self.schema.names,
            output_bytes=partial.stat().st_size,
        )

    def score_parts(self, numbers: Iterable[int]) -> Iterator[Part]:
        """Score these parts, and yield them in order."""
        scored: list[tuple[Batch, Classification | None]] = []
        for batch, result in self._results(self.reader.batches(numbers)):
            scored.append(reject_non_finite(batch, result, self.sources) if result else (batch, None))
            self.listener.advances(batch.rows)
            if sum(each.rows for each, _ in scored) == self.plan.rows_of(batch.part):
                yield self._part(scored)
                scored = []

    def _part(self, scored: list[tuple[Batch, Classification | None]]) -> Part:
        """Combine the results of the batches of a part.

        Raises JobRefused if another model file than that of the plan has scored some of the rows.
        """
        self._check_model([result for _, result in scored if result])
        below = self.plan.reject_below
        tables = [
            table(self.schema, batch, result, self.sources, reject_below=below) for batch, result in scored if result
        ]
        blocks = [pair for batch, _ in scored for pair in batch.blocks]
        return Part(
            number=scored[0][0].part,
            rows=pa.Table.from_batches(tables, self.schema).combine_chunks(),
            rejects=[reject_line(reject) for _, block in blocks for reject in block.rejects],
            digest=digest_of(blocks),
            unread_metadata=sum(block.unread_metadata for _, block in blocks),
        )

    def _check_model(self, results: list[Classification]) -> None:
        plan = self.plan
        digests = {digest for result in results for digest in result.digests}
        if not all(result.digests for result in results):  # of a service that is too old to return digests
            digests.add(self.client.model(plan.model, plan.version).digest)
        if digests - {plan.model_digest}:
            raise JobRefused(
                f"the service replaced the file of {plan.model} version {plan.version} during the job; "
                "--restart begins anew"
            )

    def _results(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Classification | None]]:
        """Yield each batch with its scores, in order; with None if all of its rows are rejects."""
        sent: deque[Batch] = deque()

        def bitmaps() -> Iterator[Bitmaps]:
            for batch in batches:
                sent.append(batch)
                if len(batch.bitmaps):
                    yield batch.bitmaps

        received: list[Classification] = []
        with score_batches(self.client, bitmaps(), self.plan.options) as results:
            for result in results:
                while not len(sent[0].bitmaps):
                    yield sent.popleft(), None
                received.append(result)
                if sum(map(len, received)) == len(sent[0].bitmaps):
                    yield sent.popleft(), joined(received)
                    received = []
        while sent:
            yield sent.popleft(), None
