"""Score the drawings of many files into one output: each row exactly once, however often the job is interrupted.

Flow: inputs -> `plan` -> unfinished parts -> `block_reader` -> `Client.score` -> `parts` -> `outputs`.

Parts are scored in order, and each is stored as soon as it is finished. The output is written together with the parts,
under another name until it is complete. The same command resumes an interrupted job with the next part and produces
byte-identical output. A manifest next to the output marks the job as finished and records its inputs.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow as pa

from ..atomic import replacing, room_for
from ..drawings.passed_over import PassedOverList
from ..drawings.readers import Bitmaps
from ..errors import FileRefused, JobRefused, OutputRefused
from ..output_file import check_is_no_input, checked_output
from ..rpc.classification import Classification, ModelInfo, joined
from ..rpc.client import Client
from .block_reader import Batch, BlockReader, digest_of
from .inputs import InputOptions, Source, find_sources
from .inputs.sources import BitmapSource
from .manifest import Manifest, manifest_path, rejects_path
from .outputs import reject_line, schema, table, writing
from .parts import BegunJob, Part, Parts, check_is_ours, locked, other_shards
from .plan import ALL, Input, Plan, ScoreOptions, Shard, default_part_rows, difference, row_bytes
from .render_digest import renderer
from .score_rows import reject_non_finite, score_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreJob:
    """What a caller requests: the inputs and the options of one job, but not its output."""

    inputs: Sequence[str]
    """Files, folders, globs, or "-" = standard input."""
    kind: str = "parquet"
    """One of `outputs.KINDS`; "npy" needs all scores."""
    options: ScoreOptions = field(default_factory=ScoreOptions)
    shard: Shard = ALL
    part_rows: int = 0  # rows per part, the same for all shards; 0 = `default_part_rows` for this model
    readers: int = 1  # number of processes that decode strokes and pictures
    input_options: InputOptions = field(default_factory=InputOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a job."""

    rows: int  # number of rows written, without rejected rows
    rejected: int
    was_finished: bool = False  # whether an earlier run had finished the job, so that this run scored nothing
    added: int | None = None  # for `append_scores`: number of the rows among `rows` that this run wrote
    added_rejected: int | None = None  # and among `rejected`


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


def write_scores(
    client: Client, job: ScoreJob, output: Path, listener: ProgressListener, *, restart: bool = False
) -> Outcome:
    """Score every drawing of `job` into `output`, or resume an interrupted run; `restart` discards all earlier results.

    Raises:
        DiskFull: The disk is full. The next run resumes.
        FileRefused: An input does not have the expected format.
        JobRefused: This or another shard of the job began with other inputs, another model or other options.
        JobNotReady: Another process writes the same output.
        OutputRefused: The output is an input, no regular file, or without `restart` a file that no job has written.
        SketchbatchError: The service does not respond. The next run resumes.
    """
    output = check_output(job, output, restart=restart)

    def opens(source: str) -> None:
        _check_inputs(output, [source])
        listener.opens(source)

    served = client.model(job.options.model_name, job.options.model_version)
    with locked(output) as parts:
        parts.complete(output)
        earlier = None if restart else BegunJob.read(output)
        if earlier and earlier.manifest and earlier.manifest.earlier:
            raise JobRefused(f"{output} has rows of several runs; continue with --append, or name another output")
        others = [] if restart else other_shards(output, job.shard)
        begun = next((each.plan for each in (earlier, *others) if each), None)
        passed_over = PassedOverList()
        sources = find_sources(job.inputs, parts.folder, opens, job.input_options, passed_over)
        listener.passes_over(passed_over)
        plan = make_plan(job, sources, same_version(client, job.options, served, begun), begun)
        with BlockReader(plan, sources, job.readers) as reader:
            _check_unchanged(earlier, others, plan, reader)
            if earlier and earlier.manifest:
                return _finished_earlier(earlier.manifest, plan, output)
            if not earlier:
                parts.clear()
                parts.may_replace(output)
                manifest_path(output).unlink(missing_ok=True)
            manifest = JobRunner(client, job.kind, plan, sources, reader, listener).write(output, parts, passed_over)
            if manifest.rejected and not manifest.rows and plan.shard == ALL:
                reason = parts.first_reason()
                parts.clear()
                raise FileRefused(f"none of {manifest.rejected:,} rows was scored; the first: {reason}")
            if not parts.is_replaceable(output):
                raise OutputRefused(f"{output}: was written during the job; move it, then run the same command again")
            parts.publish(output, manifest)
            parts.clear()
    return Outcome(rows=manifest.rows, rejected=manifest.rejected)


def check_output(job: ScoreJob, output: Path, *, restart: bool = False) -> Path:
    """Return the file that a job writes: `output`, or the file to which this link leads.

    Raises OutputRefused if the file is an input, no regular file, or without `restart` a file that no job has written.
    """
    output = checked_output(output)
    _check_inputs(output, job.inputs)
    if not restart:
        check_is_ours(output)
    return output


def _check_inputs(output: Path, inputs: Sequence[str]) -> None:
    for given in inputs:
        check_is_no_input((output, manifest_path(output), rejects_path(output)), Path(given))


def stream_scores(
    client: Client, job: ScoreJob, file: BinaryIO, spool: Path, listener: ProgressListener
) -> Iterator[str]:
    """Score every drawing of `job` into an open file, such as standard output; yield each line of rejects.

    An interrupted run cannot resume. Raises the errors of `write_scores`.
    """
    served = client.model(job.options.model_name, job.options.model_version)
    passed_over = PassedOverList()
    sources = find_sources(job.inputs, spool, listener.opens, job.input_options, passed_over)
    listener.passes_over(passed_over)
    plan = make_plan(job, sources, served, None)
    with BlockReader(plan, sources, job.readers) as reader:
        runner = JobRunner(client, job.kind, plan, sources, reader, listener)
        listener.selects(plan.model, plan.score_kind)
        listener.begins(plan.rows, 0)
        with writing(file, job.kind, plan, runner.schema) as write:
            for part in runner.score_parts(plan.parts):
                write(part.rows, plan.rows_of(part.number))
                listener.leaves_empty(part.unread_metadata)
                yield from part.rejects


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

    @property
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
        rows = rejected = unread = 0
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
                rows, rejected, unread = (
                    rows + len(part.rows),
                    rejected + len(part.rejects),
                    unread + part.unread_metadata,
                )
                self.listener.leaves_empty(part.unread_metadata)
        done = {part: digest for part, digest in digests.items() if digest is not None}
        return Manifest(
            plan=plan,
            digests=done,
            rows=rows,
            rejected=rejected,
            unread_metadata=unread,
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
        tables = [table(self.schema, batch, result, self.sources) for batch, result in scored if result]
        blocks = [block for batch, _ in scored for _, block in batch.blocks]
        return Part(
            number=scored[0][0].part,
            rows=pa.Table.from_batches(tables, self.schema).combine_chunks(),
            rejects=[reject_line(reject) for block in blocks for reject in block.rejects],
            digest=digest_of(blocks),
            unread_metadata=sum(block.unread_metadata for block in blocks),
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


def make_plan(job: ScoreJob, sources: list[Source], served: ModelInfo, begun: Plan | None) -> Plan:
    """Return the plan of a job; a part has `job.part_rows` rows, or as many as in the `begun` plan, or the default."""
    options = job.options
    rows = sum(map(len, sources))
    part_rows = begun.part_rows if begun else default_part_rows(rows, row_bytes(options, served.labels))
    return Plan(
        inputs=tuple(Input(source=source.name, rows=len(source), stamp=source.stamp) for source in sources),
        model=served.name,
        version=served.version,
        model_digest=served.digest,
        labels=served.labels,
        top_k=options.top_k,
        with_all_scores=options.with_all_scores,
        part_rows=job.part_rows or part_rows,
        shard=job.shard,
        column=job.input_options.column,
        scale=job.input_options.scale,
        score_kind=served.score_kind,
        renderer="" if all(isinstance(source, BitmapSource) for source in sources) else renderer(),
    )


def same_version(client: Client, options: ScoreOptions, served: ModelInfo, begun: Plan | None) -> ModelInfo:
    """Return the version of the begun plan if it is still served and the job names no version, else `served`."""
    if begun and not options.model_version and served.name == begun.model and begun.version in served.versions:
        return client.model(served.name, begun.version)
    return served


def _finished_earlier(manifest: Manifest, plan: Plan, output: Path) -> Outcome:
    """Return the outcome of a finished job.

    If the stamps of inputs have changed, but not their contents, store the new stamps in the manifest.
    """
    if manifest.plan != plan:
        with replacing(manifest_path(output)) as manifest_file:
            replace(manifest, plan=plan).write(manifest_file)
    return Outcome(rows=manifest.rows, rejected=manifest.rejected, was_finished=True)


def _check_unchanged(earlier: BegunJob | None, others: Sequence[BegunJob], plan: Plan, reader: BlockReader) -> None:
    """Raise JobRefused if this or another shard has finished parts of another job or of inputs that have changed."""
    if earlier and (change := difference(earlier.plan, plan) or _changed_contents(earlier, plan, reader)):
        advice = "undo the change, name another output, or use --restart"
        raise JobRefused(f"{earlier.output} was begun differently: {change}; {advice}")
    for other in () if earlier and earlier.manifest else others:
        own = replace(plan, shard=other.plan.shard)
        if change := difference(other.plan, own) or _changed_contents(other, own, reader):
            advice = "undo the change, or name another output for all shards"
            raise JobRefused(f"{other.output}, another shard of the job, was begun differently: {change}; {advice}")


def _changed_contents(begun: BegunJob, plan: Plan, reader: BlockReader) -> str:
    """Find the first finished part of `begun` whose input rows have changed; name its sources, "" if there is none."""
    pairs = enumerate(zip(begun.plan.inputs, plan.inputs, strict=True))
    touched = {source for source, (before, after) in pairs if before.stamp != after.stamp}
    for part in begun.plan.parts if touched else ():
        sources = touched & {segment.source for segment in plan.segments(part)}
        digest = begun.digest(part) if sources else None
        if digest is not None and reader.digest(part) != digest:
            names = " or ".join(plan.inputs[source].source for source in sorted(sources))
            return f"the contents of {names} have changed"
    return ""
