"""Score the drawings of many files into one output: each row exactly once, however often the job is interrupted.

Flow: inputs -> `plan` -> unfinished parts -> `block_reader` -> `Client.score` -> `parts` -> `outputs`.

Parts are scored in order, and each is stored as soon as it is finished. The output is written together with the parts,
under another name until it is complete. The same command resumes an interrupted job with the next part and produces
byte-identical output. A manifest next to the output marks the job as finished and records its inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from ..atomic import replacing
from ..drawings.passed_over import PassedOverList
from ..errors import FileRefused, JobRefused, OutputRefused, RequestRefused
from ..output_file import check_is_no_input, checked_output
from ..rpc.classification import ModelInfo
from ..rpc.client import Client
from .block_reader import BlockReader
from .inputs import InputOptions, Source, find_sources
from .inputs.paths import input_paths, working_folder
from .inputs.sources import BitmapSource
from .job_runner import JobRunner
from .job_runner import ProgressListener as ProgressListener
from .manifest import Manifest, manifest_path, rejects_path
from .outputs import writing
from .parts import BegunJob, Parts, check_is_ours, locked, other_shards
from .plan import ALL, Input, Plan, ScoreOptions, Shard, default_part_rows, difference, has_new_rows, row_bytes
from .render_digest import renderer


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
    ignores_others: bool = False
    """The user accepts that files which may have drawings are not read; the manifest records it for `merge`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a job."""

    rows: int  # number of rows written, without rejected rows
    rejected: int
    was_finished: bool = False  # whether an earlier run had finished the job, so that this run scored nothing
    model: str = ""  # if it was finished: name and version of the model that scored the rows
    added: int | None = None  # for `append_scores`: number of the rows among `rows` that this run wrote
    added_rejected: int | None = None  # and among `rejected`
    passed_over: PassedOverList = field(default_factory=PassedOverList)
    """For `merge`: what the jobs did not read, without that of jobs with `ScoreJob.ignores_others`."""


def write_scores(
    client: Client, job: ScoreJob, output: Path, listener: ProgressListener, *, restart: bool = False
) -> Outcome:
    """Score every drawing of `job` into `output`, or resume an interrupted run; `restart` discards all earlier results.

    Raises:
        DiskFull: The disk is full. The next run resumes.
        FileRefused: An input does not have the expected format.
        JobRefused: This or another shard of the job began with other inputs, another model or other options.
        JobNotReady: Another process writes the same output.
        OutputRefused: The output is an input or not a regular file, or without `restart` a file that no job wrote.
        RequestRefused: The model has no threshold of the coverage `job.options.reject`.
        SketchbatchError: The service does not respond. The next run resumes.
    """
    output = check_output(job, output, restart=restart)
    served = client.model(job.options.model_name, job.options.model_version)
    with locked(output) as parts:
        parts.complete(output)
        earlier = None if restart else BegunJob.read(output)
        if earlier and earlier.manifest and earlier.manifest.earlier:
            raise JobRefused(f"{output} has rows of several runs; continue with --append, or name another output")
        others = [] if restart else other_shards(output, job.shard)
        begun = next((each.plan for each in (earlier, *others) if each), None)
        passed_over = PassedOverList()
        passed_over.inputs.add(str(parts.folder))  # exists only while the job runs
        sources = find_sources(job.inputs, parts.folder, opening(output, listener), job.input_options, passed_over)
        listener.passes_over(passed_over)
        plan = make_plan(job, sources, same_version(client, job.options, served, begun), begun)
        with BlockReader(plan, sources, job.readers) as reader:
            _check_unchanged(earlier, others, plan, reader)
            if earlier and earlier.manifest:
                return finished_earlier(job, earlier.manifest, plan, passed_over, output)
            if not earlier:
                parts.clear()
                parts.may_replace(output)
                manifest_path(output).unlink(missing_ok=True)
            manifest = JobRunner(client, job.kind, plan, sources, reader, listener).write(output, parts, passed_over)
            manifest = replace(manifest, ignores_others=job.ignores_others)
            check_any_scored(parts, manifest, is_first=plan.shard == ALL)
            if not parts.is_replaceable(output):
                raise OutputRefused(f"{output}: was written during the job; move it, then run the same command again")
            parts.publish(output, manifest)
            parts.clear()
    return Outcome(rows=manifest.rows, rejected=manifest.rejected)


def check_output(job: ScoreJob, output: Path, *, restart: bool = False) -> Path:
    """Return the file that a job writes: `output`, or the file to which this link leads.

    Raises OutputRefused if the file is an input or not a regular file, or without `restart` a file that no job wrote.
    """
    output = checked_output(output)
    _check_inputs(output, job.inputs)
    if output.exists() and not manifest_path(output).exists():
        # Once the job has a folder for its parts, a folder of inputs leaves out its output: compare before.
        _check_inputs(output, [str(path) for path in input_paths(job.inputs, PassedOverList(), may_be_empty=True)])
    if not restart:
        if job.input_options.is_growing:  # --append, which --restart contradicts
            check_is_ours(output, remedy="name another output, or move it")
        else:
            check_is_ours(output)
    return output


def check_any_scored(parts: Parts, written: Manifest, *, is_first: bool) -> None:
    """Raise FileRefused if the first run of a job has only rejects: its inputs are probably no drawings."""
    if is_first and written.rejected and not written.rows:
        reason = parts.first_reason()
        parts.clear()
        raise FileRefused(f"no row was scored, and {written.rejected:,} rejected; the first: {reason}")


def opening(output: Path, listener: ProgressListener) -> Callable[[str], None]:
    """Return a function that reports the opening of an input; it raises OutputRefused if the input is the output."""

    def opens(source: str) -> None:
        _check_inputs(output, [source])
        listener.opens(source)

    return opens


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
                listener.leaves_unlabelled(part.unlabelled)
                yield from part.rejects


def make_plan(job: ScoreJob, sources: list[Source], served: ModelInfo, begun: Plan | None) -> Plan:
    """Return the plan of a job; a part has `job.part_rows` rows, or as many as in the `begun` plan, or the default.

    Raises RequestRefused if the model has fewer labels than `job.options.top_k`, or no threshold of the coverage
    `job.options.reject`.
    """
    options, labels = job.options, len(served.labels)
    if options.top_k > labels:
        raise RequestRefused(
            f"top-k must be 1 to {labels}, the number of labels of {served.name}, got {options.top_k}; "
            "--all-scores writes the scores of all labels"
        )
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
        reject=options.reject,
        reject_below=None if options.reject is None else _threshold(served, options.reject),
        part_rows=job.part_rows or part_rows,
        shard=job.shard,
        column=job.input_options.column,
        scale=float(job.input_options.scale),
        score_kind=served.score_kind,
        renderer="" if all(isinstance(source, BitmapSource) for source in sources) else renderer(),
        folder=working_folder(),
    )


def _threshold(served: ModelInfo, coverage: float) -> float:
    if not served.rejection:
        name = f"{served.name} version {served.version}"
        raise RequestRefused(f"--reject: the file of {name} has no thresholds; filter the output on its column score")
    try:
        return served.rejection.at(coverage).score
    except ValueError as exc:
        raise RequestRefused(f"--reject {exc}") from exc


def same_version(client: Client, options: ScoreOptions, served: ModelInfo, begun: Plan | None) -> ModelInfo:
    """Return the version of the begun plan if it is still served and the job names no version, else `served`."""
    if begun and not options.model_version and served.name == begun.model and begun.version in served.versions:
        return client.model(served.name, begun.version)
    return served


def finished_earlier(
    job: ScoreJob, manifest: Manifest, plan: Plan, passed_over: PassedOverList, output: Path
) -> Outcome:
    """Return the outcome of a job that had nothing to do.

    If the stamps of inputs have changed, but not their contents, or if other files are not read, store this in the
    manifest.
    """
    plan = replace(plan, folder=manifest.plan.folder or plan.folder)  # where the rows were scored
    now = replace(manifest, plan=plan, passed_over=passed_over.to_json(), ignores_others=job.ignores_others)
    if manifest != now:
        with replacing(manifest_path(output)) as manifest_file:
            now.write(manifest_file)
    model = f"{plan.model} version {plan.version}"
    return Outcome(rows=manifest.rows, rejected=manifest.rejected, was_finished=True, model=model)


def _check_unchanged(earlier: BegunJob | None, others: Sequence[BegunJob], plan: Plan, reader: BlockReader) -> None:
    """Raise JobRefused if this or another shard has finished parts of another job or of inputs that have changed."""
    if earlier and (change := difference(earlier.plan, plan) or _changed_contents(earlier, plan, reader)):
        advice = "undo the change, name another output, or use --restart"
        has_folder = any(map(_is_folder, earlier.plan.inputs))
        if earlier.manifest and has_new_rows(earlier.plan, plan) and not has_folder:
            advice = f"use --append to add the new rows, or {advice.partition(', ')[2]}"
        if earlier.manifest and rejects_path(earlier.output).exists() and not has_folder:
            advice += "; --append scores pictures again that were rejected and have been mended"
        raise JobRefused(f"{earlier.output} was begun differently: {change}; {advice}")
    for other in () if earlier and earlier.manifest else others:
        own = replace(plan, shard=other.plan.shard)
        if change := difference(other.plan, own) or _changed_contents(other, own, reader):
            advice = "undo the change, or name another output for all shards"
            raise JobRefused(f"{other.output}, another shard of the job, was begun differently: {change}; {advice}")


def _is_folder(given: Input) -> bool:
    """Return whether an input is a folder of pictures, to which --append cannot add."""
    return Path(given.source).is_dir()


def _changed_contents(begun: BegunJob, plan: Plan, reader: BlockReader) -> str:
    """Return which input of a finished part of `begun` has changed; "" if there is none."""
    pairs = enumerate(zip(begun.plan.inputs, plan.inputs, strict=True))
    touched = {source for source, (before, after) in pairs if before.stamp != after.stamp}
    for part in begun.plan.parts if touched else ():
        is_touched = any(segment.source in touched for segment in plan.segments(part))
        digest = begun.digest(part) if is_touched else None
        if digest is not None and (changed := reader.changed(part, digest, touched)):
            return f"the contents of {plan.inputs[changed[0]].source} have changed"
    return ""
