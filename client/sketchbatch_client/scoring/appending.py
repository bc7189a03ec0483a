"""Add new rows to a finished output: rows of new files, and rows at the end of files that have grown.

Flow: manifest of the output -> rows that it has -> plan of the other rows -> their own output -> both joined.

The order of an output is the order in which its rows arrived: each run adds its rows at the end. The manifest lists the
runs, so that the next run knows which rows the output has.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..atomic import is_open_file, room_for
from ..drawings.passed_over import PassedOverList
from ..errors import JobRefused, OutputRefused
from ..rpc.client import Client
from .block_reader import BlockReader
from .inputs import Block, Source, find_sources
from .inputs.opening import NO_FILE
from .inputs.paths import STDIN, Locations
from .inputs.sources import PictureSource
from .job import (
    Outcome,
    ProgressListener,
    ScoreJob,
    check_any_scored,
    check_output,
    finished_earlier,
    make_plan,
    opening,
    same_version,
)
from .job_runner import JobRunner
from .manifest import Addition, Manifest, rejects_path
from .merge import join
from .outputs.columns import text
from .parts import Parts, locked
from .plan import Input, Plan, difference

_ADVICE = "undo the change, or name another output"


class _Scored(NamedTuple):
    """The rows of a source that an output has."""

    rows: int  # from the first row of the source on
    stamp: str
    folder: str  # `Plan.folder`


class _Removed(Source):
    """A source that an earlier run scored, and that no longer exists; only its digest may be asked for."""

    def __len__(self) -> int:
        return 0

    def block(self, start: int, stop: int) -> Block:
        return Block(rows=np.arange(0), bitmaps=np.empty((0, 28, 28), np.uint8), digest=0)


def append_scores(client: Client, job: ScoreJob, output: Path, listener: ProgressListener) -> Outcome:
    """Score the rows of `job` that `output` does not have, and add them at its end; begin the output if it is missing.

    A source has new rows if its name is new, or if it has more rows than the output has of it. Sources that no longer
    exist keep their rows in the output. A picture that was rejected, and has been written anew since, is scored again.
    An interrupted run resumes: first the rows that it began with, then the others.

    Raises the errors of `write_scores`, and JobRefused if rows that the output has were changed or removed, or if the
    model or the options differ from those of the output.
    """
    if pipes := [given for given in job.inputs if given == STDIN or is_open_file(Path(given))]:
        raise JobRefused(f"{pipes[0]}: expected a file for --append, got a pipe, whose rows have no name; use a file")
    job = replace(job, input_options=replace(job.input_options, is_growing=True))
    output = check_output(job, output)
    added = added_rejected = 0
    while True:
        with locked(output) as parts:
            parts.complete(output)
            outcome, has_more = _append(client, job, output, Manifest.read(output), parts, listener)
        added, added_rejected = added + (outcome.added or 0), added_rejected + (outcome.added_rejected or 0)
        if not has_more:
            return replace(outcome, added=added, added_rejected=added_rejected)


def _append(
    client: Client, job: ScoreJob, output: Path, manifest: Manifest | None, parts: Parts, listener: ProgressListener
) -> tuple[Outcome, bool]:
    """Add new rows to an output, or begin it; return also whether others remain, because an interrupted run resumed."""
    passed_over = PassedOverList()
    passed_over.inputs.add(str(parts.folder))  # exists only while the job runs
    opens = opening(output, listener)
    scored = _scored(manifest.additions) if manifest else {}
    input_options = replace(
        job.input_options, may_be_empty=manifest is not None, scored={name: each.rows for name, each in scored.items()}
    )  # files may be removed once scored
    found = find_sources(job.inputs, parts.folder, opens, input_options, passed_over)
    present = (source for source in found if source.stamp != NO_FILE or source.name not in scored)
    sources = list({source.name: source for source in present}.values())  # a picture may be named twice
    listener.passes_over(passed_over)
    served = client.model(job.options.model_name, job.options.model_version)
    interrupted = parts.earlier_plan()
    served = same_version(client, job.options, served, manifest.plan if manifest else interrupted)
    plan = make_plan(job, sources, served, interrupted)
    additions = manifest.additions if manifest else ()
    mended = _mended_pictures(additions, sources, output)
    if manifest:
        _check_same_job(manifest, plan, sources, output)
        _check_scored_rows(additions, sources, mended, plan.folder)
    inputs = _new_inputs(additions, sources, mended)
    _check_names(additions, inputs, plan.folder)
    begun = _begun_inputs(interrupted, inputs) if interrupted else ()
    if not interrupted or not begun or difference(interrupted, replace(plan, inputs=begun)):
        begun = ()
        parts.clear()
    plan = replace(plan, inputs=begun or inputs)
    if manifest and not plan.inputs:
        finished = finished_earlier(job, manifest, manifest.plan, passed_over, output)
        return replace(finished, added=0, added_rejected=0), False
    by_name = {source.name: source for source in sources}
    plan_sources = [by_name[each.source] for each in plan.inputs]
    parts.may_replace(output)
    with BlockReader(plan, plan_sources, job.readers) as reader:
        if any(parts.digest(part) not in (None, reader.digest(part)) for part in plan.parts if begun):
            parts.clear()  # the inputs have changed since the interruption
        has_key_ids = manifest.has_key_ids if manifest else None
        runner = JobRunner(client, job.kind, plan, plan_sources, reader, listener, has_key_ids)
        added = replace(runner.write(output, parts, passed_over), ignores_others=job.ignores_others)
    check_any_scored(parts, added, is_first=not manifest)
    mended &= {each.source for each in plan.inputs}
    grown = _joined(job.kind, output, manifest, added, parts, mended) if manifest else added
    if not parts.is_replaceable(output):
        raise OutputRefused(f"{output}: was written during the job; move it, then run the same command again")
    parts.publish(output, grown)
    parts.clear()
    outcome = Outcome(rows=grown.rows, rejected=grown.rejected, added=added.rows, added_rejected=added.rejected)
    return outcome, plan.inputs != inputs


def _check_same_job(manifest: Manifest, plan: Plan, sources: list[Source], output: Path) -> None:
    """Raise JobRefused if the rows of `plan` cannot have the same columns and the same model as those of the output."""
    now = replace(plan, inputs=(), part_rows=1)
    for addition in manifest.additions:
        if change := difference(replace(addition.plan, inputs=(), part_rows=1), now):
            raise JobRefused(f"{output} was begun differently: {change}; {_ADVICE}")
    if manifest.has_key_ids is None:
        raise JobRefused(f"{output}: an older version of sketchbatch wrote it, which cannot be continued; {_ADVICE}")
    scored = _scored(manifest.additions)
    new = [source for source in sources if source.has_key_ids and len(source) and source.name not in scored]
    if not manifest.has_key_ids and (losing := next((each for each in new if each.loses_key_ids), None)):
        raise JobRefused(f"{losing.name} has keys (key_id), and {output} has no column for them; name another output")


def _scored(additions: Sequence[Addition]) -> dict[str, _Scored]:
    """Return the rows of each source that an output has."""
    return {
        each.source: _Scored(each.start + each.rows, each.stamp, addition.plan.folder)
        for addition in additions
        for each in addition.plan.inputs
    }


def _mended_pictures(additions: Sequence[Addition], sources: list[Source], output: Path) -> set[str]:
    """Return the pictures that an earlier run rejected, for example half-written ones, and that have changed since."""
    if not rejects_path(output).exists():
        return set()
    scored = _scored(additions)
    touched = {
        text(source.name): source.name
        for source in sources
        if isinstance(source, PictureSource) and source.name in scored and source.stamp != scored[source.name].stamp
    }
    with rejects_path(output).open(encoding="utf-8") as lines:
        rejected = {json.loads(line)["source"] for line in lines} if touched else set()
    return {name for shown, name in touched.items() if shown in rejected}


def _new_inputs(additions: Sequence[Addition], sources: list[Source], mended: set[str]) -> tuple[Input, ...]:
    """Return the rows of the sources that an output does not have, and those of `mended` pictures."""
    scored = _scored(additions)
    new = []
    for source in sources:
        start = scored[source.name].rows if source.name in scored and source.name not in mended else 0
        if start < len(source):
            new.append(Input(source=source.name, rows=len(source) - start, stamp=source.stamp, start=start))
    return tuple(new)


def _check_names(additions: Sequence[Addition], inputs: Sequence[Input], folder: str) -> None:
    """Raise JobRefused if a new source is one of an earlier run, whose path was written differently.

    For example, one of the paths is absolute, or the working directory was another one than `folder`, that of today.
    """
    scored, locations = _scored(additions), Locations()
    new = [each.source for each in inputs if each.source not in scored]
    by_path = {locations.of(name, each.folder): name for name, each in scored.items()} if new else {}
    for name in new:
        if earlier := by_path.get(locations.of(name, folder)):
            before = scored[earlier].folder
            where = f", which ran in {before}" if before not in ("", folder) else ""
            advice = "write its path as then, in the same folder, or name another output"
            raise JobRefused(f"{name} is {earlier} of an earlier run{where}; {advice}")


def _begun_inputs(interrupted: Plan, inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    """Return the inputs with which an interrupted run began, with their stamps of today; none if one has changed."""
    today = {(each.source, each.start): each for each in inputs}
    begun = []
    for each in interrupted.inputs:
        now = today.get((each.source, each.start))
        if not now or now.rows < each.rows or (now.rows == each.rows and now.stamp != each.stamp):
            return ()
        begun.append(replace(each, stamp=now.stamp if now.rows == each.rows else each.stamp))
    return tuple(begun)


def _check_scored_rows(additions: Sequence[Addition], sources: list[Source], mended: set[str], folder: str) -> None:
    """Raise JobRefused if a source has fewer rows than the output has of it, or if these rows have changed.

    Pictures in `mended` may have changed. If a relative name belonged to another working directory than `folder`, the
    file may be another one with the same stamp, so its rows are compared.
    """
    scored, locations = _scored(additions), Locations()
    changed = set()
    for source in sources:
        if isinstance(source, PictureSource) and str(Path(source.name).parent) in scored:
            parent = Path(source.name).parent
            raise JobRefused(f"{parent}: was scored as a whole folder of pictures; begin a new output with --append")
        before = scored.get(source.name, _Scored(0, "", ""))
        if len(source) < before.rows:
            raise JobRefused(f"{source.name} had {before.rows:,} rows, and now has {len(source):,}; {_ADVICE}")
        is_moved = before.folder not in ("", folder) and locations.of(source.name, before.folder) != locations.of(
            source.name, folder
        )
        if before.rows and (before.stamp != source.stamp or is_moved) and source.name not in mended:
            changed.add(source.name)
    if changed:
        for name in _changed_rows(additions, sources, changed):
            raise JobRefused(f"rows of {name} that an earlier run read have changed; {_ADVICE}")


def _changed_rows(additions: Sequence[Addition], sources: list[Source], touched: set[str]) -> Iterator[str]:
    """Yield the name of each source in `touched` whose rows differ from those that the output has of it.

    The rows that an earlier run read of a picture do not count if a later run has scored it anew.
    """
    by_name = {source.name: source for source in sources}
    newest = {  # the run that last scored the first row of a source
        each.source: run for run, addition in enumerate(additions) for each in addition.plan.inputs if not each.start
    }
    for run, (plan, digests) in enumerate((each.plan, each.digests) for each in additions):
        names = [each.source for each in plan.inputs]
        own = {index for index, name in enumerate(names) if name in touched and newest.get(name, run) <= run}
        reader = BlockReader(plan, [by_name.get(name, _Removed(name, "")) for name in names], readers=0)
        for part in plan.parts if own else ():
            yield from (names[index] for index in reader.changed(part, digests.get(part, ()), own))


def _joined(kind: str, output: Path, manifest: Manifest, added: Manifest, parts: Parts, mended: set[str]) -> Manifest:
    """Write the rows of an output and the added rows to `output.partial` and `rejects.next`; return their manifest.

    The earlier rejects of `mended` pictures are left out.
    """
    partial, added_rows = parts.folder / "output.partial", parts.folder / "added.partial"
    partial.replace(added_rows)
    additions = (*manifest.additions, *added.additions)
    with room_for(output), partial.open("wb") as file:
        join(kind, [output, added_rows], file, added.plan, all_rows=sum(each.plan.rows for each in additions))
    rejects, added_rejects = parts.folder / "rejects.next", parts.folder / "rejects.partial"
    rejects.replace(added_rejects)
    left_out = 0
    shown = set(map(text, mended))
    with room_for(output), rejects.open("wb") as file:
        for path, mended_here in ((rejects_path(output), shown), (added_rejects, set[str]())):
            with path.open("rb") if path.exists() else nullcontext(()) as lines:
                for line in lines:
                    is_mended = bool(mended_here) and json.loads(line)["source"] in mended_here
                    left_out += is_mended
                    file.write(b"" if is_mended else line)
    return replace(
        added,
        rows=manifest.rows + added.rows,
        rejected=manifest.rejected + added.rejected - left_out,
        unread_metadata=manifest.unread_metadata + added.unread_metadata,
        unlabelled=manifest.unlabelled + added.unlabelled,
        earlier=manifest.additions,
        output_bytes=partial.stat().st_size,
    )
