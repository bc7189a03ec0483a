"""Merge the outputs of all shards of a job into the output that one process would have written, byte for byte.

Shards are consecutive ranges of parts, so each boundary between two shards is also a boundary between two parts.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..atomic import replacing
from ..errors import FileRefused, JobNotReady, JobRefused
from ..output_file import check_is_no_input, checked_output
from .job import Outcome
from .manifest import Manifest, manifest_path, rejects_path
from .outputs import kind_of, parquet_writer, write_npy_header
from .parts import check_is_ours
from .plan import ALL, Plan, difference


def merge(shards: Sequence[Path], output: Path, *, restart: bool = False) -> Outcome:
    """Merge the finished outputs of all shards of one job, given in any order.

    `restart` replaces an output of another job, or a file that no job has written.

    Raises:
        DiskFull: The disk has no space; the partial output is removed.
        FileRefused: The output has an unknown suffix, or a shard is damaged.
        JobNotReady: A shard is missing or not finished.
        JobRefused: A shard belongs to another job, or an input was written after one shard was scored and before
            another.
        OutputRefused: The output is a shard, no regular file, or without `restart` a file that no job has written.
    """
    kind = kind_of(output)
    output = checked_output(output)
    for shard in shards:
        check_is_no_input((output, manifest_path(output), rejects_path(output)), shard)
    ordered, manifests = _in_order(shards)
    for shard in ordered:
        if kind_of(shard) != kind:
            raise JobRefused(f"{shard}: expected a shard ending in .{kind}, as {output} does")
    plan = replace(manifests[0].plan, shard=ALL, score_kind=_score_kind(manifests))
    if not restart:
        _check_replaceable(output, plan)
    with replacing(manifest_path(output)) as manifest_file, replacing(output) as partial:
        with partial.open("wb") as file:
            _MERGE[kind](ordered, file, manifests[0].plan)
        merged = Manifest(
            plan=plan,
            digests={part: digest for manifest in manifests for part, digest in manifest.digests.items()},
            rows=sum(manifest.rows for manifest in manifests),
            rejected=sum(manifest.rejected for manifest in manifests),
            output_bytes=partial.stat().st_size,
        )
        merged.write(manifest_file)
        _merge_rejects(ordered, rejects_path(output))
    return Outcome(rows=merged.rows, rejected=merged.rejected)


def _check_replaceable(output: Path, plan: Plan) -> None:
    """Raise OutputRefused or JobRefused if the file OUTPUT exists, and is not an earlier output of the same job."""
    check_is_ours(output)
    earlier = Manifest.read(output)
    if earlier and (change := difference(earlier.plan, plan)):
        raise JobRefused(f"{output} is the output of another job: {change}; name another output, or use --restart")


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


def _in_order(shards: Sequence[Path]) -> tuple[list[Path], list[Manifest]]:
    """Return the paths and the manifests of all shards of one job, in the order of the shard numbers."""
    found: dict[int, tuple[Path, Manifest]] = {}
    first: Plan | None = None
    for path in shards:
        manifest = Manifest.read(path)
        if not manifest:
            raise JobNotReady(f"{path}: expected a finished shard; run the command that began it again")
        plan = manifest.plan
        first = first or plan
        if plan.shard.shards != first.shard.shards:
            expected = f"one of {first.shard.shards} shards, as {shards[0]} is"
            raise JobRefused(f"{path}: must be {expected}, got one of {plan.shard.shards}")
        if change := difference(replace(first, shard=plan.shard), plan):
            raise JobRefused(f"{path}: expected a shard of the same job as {shards[0]}: {change}")
        if source := _written_between(first, plan):
            raise JobRefused(
                f"{path}: {source} has another size or modification time than for {shards[0]}; "
                "run the commands of both shards again, which compare the contents"
            )
        if plan.shard.number in found:
            first_path = found[plan.shard.number][0]
            raise JobRefused(f"{path}: must be another shard than {first_path}, got shard {plan.shard.number} twice")
        found[plan.shard.number] = (path, manifest)
    numbers = range(first.shard.shards if first else 0)
    if len(found) < len(numbers):  # counted, not listed: a damaged manifest can state any number of shards
        missing = next(number for number in numbers if number not in found)
        count = f"{len(numbers) - len(found)} of {len(numbers)} shards are missing"
        raise JobNotReady(f"{count}, the first is number {missing}: score it with --shard {missing}/{len(numbers)}")
    paths, manifests = zip(*(found[number] for number in numbers), strict=True)
    return list(paths), list(manifests)


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
    write_npy_header(file, plan.all_rows, len(plan.labels))
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


_MERGE = {"parquet": _merge_parquet, "csv": _merge_csv, "jsonl": _merge_json_lines, "npy": _merge_npy}
