"""Merge the outputs of all shards of a job into the output that one process would have written, byte for byte.

Shards are consecutive ranges of parts, so each boundary between two shards is also a boundary between two parts.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pyarrow import parquet

from ..atomic import replacing
from ..errors import JobRefused
from .job import Outcome, rejects_path
from .manifest import Manifest, manifest_path
from .outputs import kind_of, parquet_writer, write_npy_header
from .plan import ALL, Plan, Shard, difference


def path_of_shard(output: Path, shard: Shard) -> Path:
    """Return the output of a shard: labels.parquet -> labels-00002-of-00008.parquet; unchanged for the only shard."""
    if shard == ALL:
        return output
    return output.with_name(f"{output.stem}-{shard.number:05}-of-{shard.shards:05}{output.suffix}")


def merge(shards: Sequence[Path], output: Path) -> Outcome:
    """Merge the finished outputs of all shards of one job, given in any order.

    Raises DiskFull if the disk has no space (nothing of the output remains), FileRefused if an output has an unknown
    suffix, and JobRefused if a shard is missing, not finished, or from another job.
    """
    kind = kind_of(output)
    ordered, manifests = _in_order(shards)
    for shard in ordered:
        if kind_of(shard) != kind:
            raise JobRefused(f"{shard}: expected a shard ending in .{kind}, as {output} does")
    with replacing(manifest_path(output)) as manifest_file, replacing(output) as partial:
        with partial.open("wb") as file:
            _MERGE[kind](ordered, file, manifests[0].plan)
        merged = Manifest(
            plan=replace(manifests[0].plan, shard=ALL),
            digests={part: digest for manifest in manifests for part, digest in manifest.digests.items()},
            rows=sum(manifest.rows for manifest in manifests),
            rejected=sum(manifest.rejected for manifest in manifests),
            output_bytes=partial.stat().st_size,
        )
        merged.write(manifest_file)
        _merge_rejects(ordered, rejects_path(output))
    return Outcome(rows=merged.rows, rejected=merged.rejected)


def _merge_rejects(shards: Sequence[Path], output: Path) -> None:
    files = [rejects_path(shard) for shard in shards if rejects_path(shard).exists()]
    if not files:
        output.unlink(missing_ok=True)
        return
    with replacing(output) as partial, partial.open("wb") as file:
        _concatenate(files, file)


def _in_order(shards: Sequence[Path]) -> tuple[list[Path], list[Manifest]]:
    """Return the shards of one job, each once, in the order of their numbers, and their manifests."""
    found: dict[int, tuple[Path, Manifest]] = {}
    first: Plan | None = None
    for path in shards:
        manifest = Manifest.read(path)
        if not manifest:
            raise JobRefused(f"{path}: expected a finished shard; run the command that began it again")
        plan = manifest.plan
        first = first or plan
        if plan.shard.shards != first.shard.shards:
            expected = f"one of {first.shard.shards} shards, as {shards[0]} is"
            raise JobRefused(f"{path}: must be {expected}, got one of {plan.shard.shards}")
        if change := difference(replace(first, shard=plan.shard), plan):
            raise JobRefused(f"{path}: expected a shard of the same job as {shards[0]}: {change}")
        found[plan.shard.number] = (path, manifest)
    numbers = range(first.shard.shards if first else 0)
    if len(found) < len(numbers):  # counted, not listed: a damaged manifest can state any number of shards
        missing = next(number for number in numbers if number not in found)
        count = f"{len(numbers) - len(found)} of {len(numbers)} shards are missing"
        raise JobRefused(f"{count}, the first is number {missing}: score it with --shard {missing}/{len(numbers)}")
    paths, manifests = zip(*(found[number] for number in numbers), strict=True)
    return list(paths), list(manifests)


def _merge_parquet(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    """Copy row group by row group; each row group is a part."""
    writer = None
    for shard in shards:
        with parquet.ParquetFile(shard) as read:
            writer = writer or parquet_writer(file, read.schema_arrow)
            for group in range(read.num_row_groups):
                writer.write_table(read.read_row_group(group))
    if writer:
        writer.close()


def _merge_csv(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    with shards[0].open("rb") as first:
        file.write(first.readline())
    _concatenate(shards, file, lambda shard: shard.readline())


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
            skip_header(shard)
            shutil.copyfileobj(shard, file)


_MERGE = {"parquet": _merge_parquet, "csv": _merge_csv, "jsonl": _merge_json_lines, "npy": _merge_npy}
