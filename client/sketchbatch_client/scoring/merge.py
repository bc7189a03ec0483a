"""Merge the outputs of all shards of a job into the output that one process would have written, byte for byte.

Shards are consecutive ranges of parts, so each boundary between two shards is also a boundary between two parts.
Outputs of several jobs with the same model and options, such as one per night, are merged in the given order.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..atomic import replacing
from ..drawings.passed_over import PassedOverList
from ..errors import FileRefused, JobNotReady, JobRefused
from ..output_file import check_is_no_input, checked_output
from .inputs.paths import Locations
from .job import Outcome
from .manifest import Addition, Manifest, manifest_path, rejects_path
from .outputs import kind_of, parquet_writer, write_npy_header
from .parts import BegunJob, check_is_ours
from .plan import ALL, Plan, difference


def merge(outputs: Sequence[Path], output: Path, *, restart: bool = False, ignores_others: bool = False) -> Outcome:
    """Merge the finished outputs of all shards of one job, given in any order, or of several jobs, in the given order.

    Jobs must have the same model, options and columns, and no row in common. `restart` replaces an output of another
    job, or a file that no job has written. `ignores_others` accepts that files which may have drawings were not read.

    Raises:
        DiskFull: The disk has no space; the partial output is removed.
        FileRefused: The output has an unknown suffix, or a shard is damaged.
        JobNotReady: A shard is missing or not finished.
        JobRefused: A shard belongs to another job, or an input was written after one shard was scored and before
            another; or two jobs differ in their model or options, or have scored the same row.
        OutputRefused: The output is a shard or not a regular file, or without `restart` a file that no job has written.
    """
    kind = kind_of(output)
    output = checked_output(output)
    for path in outputs:
        check_is_no_input((output, manifest_path(output), rejects_path(output)), path)
    manifests = [_manifest_of(path) for path in outputs]
    is_one_job = any(manifest.plan.shard != ALL for manifest in manifests)
    merged = (_shards_of_one_job if is_one_job else _jobs)(outputs, manifests)
    for path in merged.paths:
        if kind_of(path) != kind:
            raise JobRefused(f"{path}: expected a file ending in .{kind}, as {output} does")
    if not restart:
        _check_replaceable(output, merged.additions)
    not_accepted = [] if ignores_others else [each for each in manifests if not each.ignores_others]
    others, not_read = _not_read(not_accepted, is_one_job), _not_read(manifests, is_one_job)
    with replacing(manifest_path(output)) as manifest_file, replacing(output) as partial:
        *earlier, last = merged.additions
        with partial.open("wb") as file:
            join(kind, merged.paths, file, last.plan, all_rows=sum(each.plan.rows for each in merged.additions))
        manifest = Manifest(
            plan=last.plan,
            digests=last.digests,
            earlier=tuple(earlier),
            rows=sum(each.rows for each in manifests),
            rejected=sum(each.rejected for each in manifests),
            unread_metadata=sum(each.unread_metadata for each in manifests),
            unlabelled=sum(each.unlabelled for each in manifests),
            passed_over=not_read.to_json(),
            ignores_others=ignores_others or (bool(not_read.count_with_drawings) and not others.count_with_drawings),
            has_key_ids=manifests[0].has_key_ids,
            output_bytes=partial.stat().st_size,
        )
        manifest.write(manifest_file)
        _merge_rejects(merged.paths, rejects_path(output))
    return Outcome(rows=manifest.rows, rejected=manifest.rejected, passed_over=others)


class _Merged(NamedTuple):
    paths: list[Path]  # of the outputs, in the order of their rows
    additions: list[Addition]  # that wrote these rows, in this order; the shards of a job are one


class _Rows(NamedTuple):
    start: int  # rows of one source
    stop: int
    output: int  # index of the output that has them


def _manifest_of(path: Path) -> Manifest:
    manifest = Manifest.read(path)
    if manifest:
        return manifest
    if path.exists() and not BegunJob.read(path):
        raise JobRefused(
            f"{path}: expected an output of `sketchbatch score` next to its {path.name}.manifest.json, got a file that "
            "no job wrote, that was changed, or that was copied without the manifest"
        )
    got = "an unfinished one" if BegunJob.read(path) else "no such file"
    raise JobNotReady(f"{path}: expected a finished output, got {got}; run the command that writes it")


def _not_read(manifests: Sequence[Manifest], is_one_job: bool) -> PassedOverList:
    """Return what several jobs did not read, or the shards of one job, which list the same files."""
    lists = [manifest.not_read for manifest in manifests]
    if is_one_job:
        return max(lists, key=lambda files: (files.count_with_drawings, files.count), default=PassedOverList())
    all_files = PassedOverList()
    for files in lists:
        all_files.add(files)
    return all_files


def _jobs(paths: Sequence[Path], manifests: Sequence[Manifest]) -> _Merged:
    """Check the outputs of several jobs: all with one model, one set of columns, and without a row in common."""
    first, rows_of, locations = manifests[0], dict[str, list[_Rows]](), Locations()
    same = replace(first.plan, inputs=(), part_rows=1)
    for number, (path, manifest) in enumerate(zip(paths, manifests, strict=True)):
        for plan in (each.plan for each in manifest.additions):
            if change := difference(same, replace(plan, inputs=(), part_rows=1)):
                raise JobRefused(f"{path}: expected a job with the model and options of {paths[0]}: {change}")
            same = replace(same, renderer=same.renderer or plan.renderer)
            for each in plan.inputs:
                for name in {each.source, locations.of(each.source, plan.folder)}:
                    ranges = rows_of.setdefault(name, [])
                    others = (each for each in ranges if each.output != number)  # one output may name a file twice
                    if twice := next(
                        (rows for rows in others if rows.start < each.start + each.rows and each.start < rows.stop),
                        None,
                    ):
                        raise _same_rows(path, paths[twice.output], each.source)
                    ranges.append(_Rows(each.start, each.start + each.rows, number))
        if manifest.has_key_ids != first.has_key_ids:
            raise JobRefused(
                f"{path}: must have the columns of {paths[0]}, but only one has key_id; merge each kind apart"
            )
    _check_folders(paths, rows_of)
    return _Merged(list(paths), [each for manifest in manifests for each in manifest.additions])


def _check_folders(paths: Sequence[Path], rows_of: dict[str, list[_Rows]]) -> None:
    """Raise JobRefused if one output has a folder of pictures, and another one a picture of it, as with --append."""
    for name, ranges in rows_of.items():
        for folder in rows_of.get(str(Path(name).parent), ()):
            if one := next((rows for rows in ranges if rows.output != folder.output), None):
                raise _same_rows(paths[one.output], paths[folder.output], name)


def _same_rows(path: Path, other: Path, source: str) -> JobRefused:
    if path == other:
        return JobRefused(f"{path}: must be named once, got it twice")
    both = f"{path}: must have other rows than {other}, got rows of {source} in both"
    return JobRefused(f"{both}; give each input a name of its own")


def join(kind: str, outputs: Sequence[Path], file: BinaryIO, plan: Plan, *, all_rows: int) -> None:
    """Write the rows of several outputs of one kind and with the same columns, one output after the other.

    `plan` has the labels of the outputs, and `all_rows` is the number of their rows, rejects included.
    """
    if kind == "npy":
        write_npy_header(file, all_rows, len(plan.labels))
    _JOIN[kind](outputs, file, plan)


def _check_replaceable(output: Path, additions: Sequence[Addition]) -> None:
    """Raise OutputRefused or JobRefused if the file OUTPUT exists, and has rows that `additions` do not have."""
    check_is_ours(output)
    earlier = Manifest.read(output)
    for plan in (each.plan for each in earlier.additions) if earlier else ():
        changes = [difference(plan, each.plan) for each in additions]
        if all(changes):
            reason = f"is the output of another job: {changes[-1]}"
            raise JobRefused(f"{output} {reason}; name another output, or use --restart")


def _score_kind(manifests: Sequence[Manifest]) -> str:
    """Return the kind of scores that a manifest states; it is missing while an older service scored a shard."""
    return next((manifest.plan.score_kind for manifest in manifests if manifest.plan.score_kind), "")


def _merge_rejects(shards: Sequence[Path], output: Path) -> None:
    files = [rejects_path(shard) for shard in shards if rejects_path(shard).exists()]
    if not files:
        output.unlink(missing_ok=True)
        return
    with replacing(output) as partial, partial.open("wb") as file:
        _concatenate(files, file)


def _shards_of_one_job(paths: Sequence[Path], manifests: Sequence[Manifest]) -> _Merged:
    """Put the outputs of all shards of one job into the order of the shard numbers."""
    found: dict[int, tuple[Path, Manifest]] = {}
    first = manifests[0].plan
    for path, manifest in zip(paths, manifests, strict=True):
        plan = manifest.plan
        if plan.shard.shards != first.shard.shards:
            expected = f"one of {first.shard.shards} shards, as {paths[0]} is"
            raise JobRefused(f"{path}: must be {expected}, got one of {plan.shard.shards}")
        if change := difference(replace(first, shard=plan.shard), plan):
            raise JobRefused(f"{path}: expected a shard of the same job as {paths[0]}: {change}")
        if source := _written_between(first, plan):
            raise JobRefused(
                f"{path}: {source} has another size or modification time than for {paths[0]}; "
                "run the commands of both shards again, which compare the contents"
            )
        if plan.shard.number in found:
            first_path = found[plan.shard.number][0]
            raise JobRefused(f"{path}: must be another shard than {first_path}, got shard {plan.shard.number} twice")
        found[plan.shard.number] = (path, manifest)
    numbers = range(first.shard.shards)
    if len(found) < len(numbers):  # counted, not listed: a damaged manifest can state any number of shards
        missing = next(number for number in numbers if number not in found)
        count = f"{len(numbers) - len(found)} of {len(numbers)} shards are missing"
        raise JobNotReady(f"{count}, the first is number {missing}: score it with --shard {missing}/{len(numbers)}")
    ordered, all_manifests = zip(*(found[number] for number in numbers), strict=True)
    plan = replace(first, shard=ALL, score_kind=_score_kind(all_manifests))
    digests = {part: digest for manifest in all_manifests for part, digest in manifest.digests.items()}
    return _Merged(list(ordered), [Addition(plan=plan, digests=digests)])


def _written_between(first: Plan, other: Plan) -> str:
    """Return an input that was written between the readings of two shards; "" if there is none."""
    pairs = zip(first.inputs, other.inputs, strict=True)
    return next((before.source for before, after in pairs if before.stamp != after.stamp), "")


def _merge_parquet(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    """Copy the shards one row group after the other; each row group has the rows of one part."""
    with _reading(shards[0]):
        schema = parquet.read_schema(pa.OSFile(os.fspath(shards[0])))  # a path may look like a URL
    with parquet_writer(file, schema) as writer:
        for shard in shards:
            for rows in _row_groups(shard):
                writer.write_table(rows)


def _row_groups(shard: Path) -> Iterator[pa.Table]:
    with _reading(shard), pa.OSFile(os.fspath(shard)) as file, parquet.ParquetFile(file) as read:
        for group in range(read.num_row_groups):
            yield read.read_row_group(group)


def _merge_csv(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    with shards[0].open("rb") as first:
        file.write(_csv_header(first, plan))
    _concatenate(shards, file, lambda shard: _csv_header(shard, plan))


def _csv_header(file: BinaryIO, plan: Plan) -> bytes:
    """Read the header of a CSV file; a label in the name of a column may contain line feeds."""
    breaks = sum(label.count("\n") for label in plan.labels) if plan.with_all_scores else 0
    return b"".join(file.readline() for _ in range(breaks + 1))


def _merge_json_lines(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    _concatenate(shards, file)


def _merge_npy(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    _concatenate(shards, file, _skip_npy_header)


def _skip_npy_header(file: BinaryIO) -> None:
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)


def _concatenate(
    shards: Sequence[Path], file: BinaryIO, skip_header: Callable[[BinaryIO], object] = lambda shard: None
) -> None:
    for path in shards:
        with path.open("rb") as shard:
            with _reading(path):
                skip_header(shard)
            shutil.copyfileobj(shard, file)


@contextmanager
def _reading(shard: Path) -> Iterator[None]:
    """Raise FileRefused if the block cannot read `shard`."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as exc:
        reason = str(exc).partition("\n")[0]
        raise FileRefused(f"{shard}: damaged, {reason}; score this shard again with --restart") from exc


_JOIN = {"parquet": _merge_parquet, "csv": _merge_csv, "jsonl": _merge_json_lines, "npy": _merge_npy}
