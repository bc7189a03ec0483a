"""Shares one job between several runs, and joins their outputs into what one run would have written, to the byte.

Shards are consecutive parts, so that every boundary between two shards is one between two parts; see `plan`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pyarrow import parquet

from ..atomic import replacing
from ..errors import JobRefused
from .job import Outcome, rejects_beside
from .manifest import Manifest, path_beside
from .outputs import kind_of, parquet_writer
from .plan import ALL, Plan, Shard, difference

_COPIED_BYTES = 1 << 20


def path_of_shard(output: Path, shard: Shard) -> Path:
    """labels.parquet -> labels-00002-of-00008.parquet; of the only shard, the output itself."""
    if shard == ALL:
        return output
    return output.with_name(f"{output.stem}-{shard.number:05}-of-{shard.shards:05}{output.suffix}")


def merge(shards: Sequence[Path], output: Path) -> Outcome:
    """Joins the finished outputs of all shards of one job, given in any order.

    Raises:
        DiskFull: There is no room for it; nothing of it is left.
        FileRefused: An output has an ending that we do not write.
        JobRefused: A shard is missing, not finished, or of another job.
    """
    kind = kind_of(output)
    ordered, manifests = _in_order(shards)
    for shard in ordered:
        if kind_of(shard) != kind:
            raise JobRefused(f"{shard}: expected a shard ending in .{kind}, as {output} does")
    with replacing(path_beside(output)) as described, replacing(output) as partial:
        with partial.open("wb") as file:
            _JOIN[kind](ordered, file, manifests[0].plan)
        whole = Manifest(
            plan=replace(manifests[0].plan, shard=ALL),
            digests={part: digest for manifest in manifests for part, digest in manifest.digests.items()},
            rows=sum(manifest.rows for manifest in manifests),
            rejected=sum(manifest.rejected for manifest in manifests),
            output_bytes=partial.stat().st_size,
        )
        whole.write(described)
        _join_rejects(ordered, rejects_beside(output))
    return Outcome(rows=whole.rows, rejected=whole.rejected)


def _join_rejects(shards: Sequence[Path], output: Path) -> None:
    found = [rejects_beside(shard) for shard in shards if rejects_beside(shard).exists()]
    if not found:
        output.unlink(missing_ok=True)
        return
    with replacing(output) as partial, partial.open("wb") as file:
        _append(found, file)


def _in_order(shards: Sequence[Path]) -> tuple[list[Path], list[Manifest]]:
    """Every shard of one job once, by its index."""
    found: dict[int, tuple[Path, Manifest]] = {}
    first: Plan | None = None
    for path in shards:
        manifest = Manifest.read(path)
        if not manifest:
            raise JobRefused(f"{path}: expected a finished shard; finish it with the command that began it")
        plan = manifest.plan
        first = first or plan
        if plan.shard.shards != first.shard.shards:
            raise JobRefused(f"{path}: one of {plan.shard.shards} shards; {shards[0]} is one of {first.shard.shards}")
        if what := difference(replace(first, shard=plan.shard), plan):
            raise JobRefused(f"{path}: a shard of another job than {shards[0]}: {what}")
        found[plan.shard.number] = (path, manifest)
    numbers = range(first.shard.shards if first else 0)
    if len(found) < len(numbers):  # not listed: a damaged manifest may speak of any number
        missing = next(number for number in numbers if number not in found)
        raise JobRefused(
            f"{len(numbers) - len(found)} of {len(numbers)} shards are missing, the first is number {missing}"
        )
    paths, manifests = zip(*(found[number] for number in numbers), strict=True)
    return list(paths), list(manifests)


def _join_parquet(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    """Row group by row group: each is a part."""
    writer = None
    for shard in shards:
        with parquet.ParquetFile(shard) as read:
            writer = writer or parquet_writer(file, read.schema_arrow)
            for group in range(read.num_row_groups):
                writer.write_table(read.read_row_group(group))
    if writer:
        writer.close()


def _join_csv(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    """The first with its line of names, the others without."""
    for number, shard in enumerate(shards):
        with shard.open("rb") as read:
            names = read.readline()
            if not number:
                file.write(names)
            _copy(read, file)


def _join_npy(shards: Sequence[Path], file: BinaryIO, plan: Plan) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (plan.all_rows, len(plan.labels))}
    np.lib.format.write_array_header_1_0(file, header)
    for shard in shards:
        with shard.open("rb") as read:
            np.lib.format.read_magic(read)
            np.lib.format.read_array_header_1_0(read)
            _copy(read, file)


def _append(shards: Sequence[Path], file: BinaryIO, plan: Plan | None = None) -> None:
    for shard in shards:
        with shard.open("rb") as read:
            _copy(read, file)


def _copy(read: BinaryIO, file: BinaryIO) -> None:
    while chunk := read.read(_COPIED_BYTES):
        file.write(chunk)


_JOIN = {"parquet": _join_parquet, "csv": _join_csv, "npy": _join_npy, "jsonl": _append}
