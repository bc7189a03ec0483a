"""Store the finished parts of a job next to its output, so that an interrupted job can resume.

OUTPUT.parts/ contains `manifest.json` with the plan, and the file `lock`, which the running process locks. Each
finished part has an Arrow file of its rows, which appears only when it is complete. If a part has rejects, a file with
these rejects appears before the Arrow file.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..atomic import replacing, room_for
from ..errors import JobNotReady
from .manifest import Manifest, read_json, write_json
from .plan import ALL, Plan, Shard

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
_DIGEST, _UNREAD = b"digest", b"unread_metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The result of scoring one part of a job."""

    number: int
    rows: pa.Table  # lines of `outputs.table`
    rejects: list[str]  # one line of JSON per rejected row
    digest: int  # part digest: CRC-32 of the input bytes
    unread_metadata: int = 0  # number of rows with metadata that cannot be read


class Parts:
    """Stores and reads the finished parts of one job in a folder; one process at a time uses it, see `locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = folder / "manifest.json"

    @classmethod
    def of(cls, output: Path) -> "Parts":
        """Return the object for the folder OUTPUT.parts."""
        return cls(output.with_name(f"{output.name}.parts"))

    def earlier_plan(self) -> Plan | None:
        """Return the plan of an interrupted job; None if no part of it is finished."""
        try:
            return Plan.from_json(read_json(self._manifest)) if self.has_any() else None
        except (FileNotFoundError, ValueError):
            return None

    def begin(self, plan: Plan) -> None:
        """Store the plan, before the first part is scored."""
        write_json(self._manifest, plan.to_json())

    def has_any(self) -> bool:
        """Return whether any part is finished."""
        return any(self.folder.glob("*.arrow"))

    def digest(self, part: int) -> int | None:
        """Return the part digest of a part; None if the part is not finished, or if its files are damaged."""
        try:
            return self.read(part).digest
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):  # a power failure can damage files
            return None

    def read(self, part: int) -> Part:
        """Read a finished part. Raises an error if its files are damaged; call `digest` first to check them."""
        with pa.memory_map(os.fspath(self._rows(part))) as file:
            rows = pa.ipc.open_file(file).read_all()
        rows.validate(full=True)
        rejects = self._rejects(part)
        lines = rejects.read_text(encoding="utf-8").splitlines(keepends=True) if rejects.exists() else []
        metadata = rows.schema.metadata
        return Part(
            number=part,
            rows=rows.replace_schema_metadata(),
            rejects=lines,
            digest=int(metadata[_DIGEST]),
            unread_metadata=int(metadata.get(_UNREAD, 0)),
        )

    def save(self, part: Part) -> None:
        """Store a finished part; the rows reach the disk before the file gets its final name."""
        if part.rejects:
            with replacing(self._rejects(part.number)) as partial:
                partial.write_text("".join(part.rejects), encoding="utf-8")
        with replacing(self._rows(part.number)) as partial, partial.open("wb") as file:
            rows = part.rows.replace_schema_metadata({_DIGEST: str(part.digest), _UNREAD: str(part.unread_metadata)})
            with pa.ipc.new_file(file, rows.schema, options=_OPTIONS) as writer:
                writer.write_table(rows)
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Delete the files of all parts."""
        for path in self.folder.glob("part-*"):
            path.unlink()

    def _rows(self, part: int) -> Path:
        return self.folder / f"part-{part:07}.arrow"

    def _rejects(self, part: int) -> Path:
        return self.folder / f"part-{part:07}.rejects.jsonl"


@dataclass(frozen=True, slots=True)
class BegunJob:
    """A job with at least one finished part, which an earlier run or the command of another shard has begun."""

    output: Path
    plan: Plan
    manifest: Manifest | None
    """None if the job is not finished."""

    @classmethod
    def read(cls, output: Path) -> "BegunJob | None":
        """Return the job that has begun to write `output`; None if no part of the job is finished."""
        manifest = Manifest.read(output)
        plan = manifest.plan if manifest else Parts.of(output).earlier_plan()
        return cls(output, plan, manifest) if plan else None

    def digest(self, part: int) -> int | None:
        """Return the part digest of a part; None if the part is not finished."""
        return self.manifest.digests.get(part) if self.manifest else Parts.of(self.output).digest(part)


def path_of_shard(output: Path, shard: Shard) -> Path:
    """Return the output of a shard, such as labels-00002-of-00008.parquet; a job with one shard writes `output`."""
    return output if shard == ALL else output.with_name(f"{output.stem}{_suffix(shard)}{output.suffix}")


def other_shards(output: Path, shard: Shard) -> list[BegunJob]:
    """Find the other shards of the same job whose outputs are in the folder of `output`; return those that have begun.

    `output` is the output of this shard. The result has the order of the shards.
    """
    if shard == ALL or not output.stem.endswith(_suffix(shard)):
        return []
    prefix, end = re.escape(output.stem.removesuffix(_suffix(shard))), re.escape(output.suffix)
    name_of_job = re.compile(rf"({prefix}-\d{{5,}}-of-{shard.shards:05}{end})\.(?:parts|manifest\.json)")
    matches = [name_of_job.fullmatch(path.name) for path in output.parent.iterdir()]
    names = {match[1] for match in matches if match} - {output.name}
    return [job for name in sorted(names) if (job := BegunJob.read(output.with_name(name)))]


def _suffix(shard: Shard) -> str:
    return f"-{shard.number:05}-of-{shard.shards:05}"


@contextmanager
def locked(output: Path) -> Iterator[Parts]:
    """Lock the folder of the parts of an output, until the context ends.

    At the end, delete partial files; if no part is finished, delete the whole folder.

    Raises DiskFull if the disk has no space for the folder, and JobNotReady if another process holds the lock.
    """
    parts = Parts.of(output)
    with room_for(output):
        parts.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock_file = (parts.folder / "lock").open("w")
        except FileNotFoundError as exc:
            raise JobNotReady(f"{output}: another process has just deleted its parts; run the command again") from exc
    with lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise JobNotReady(f"{output}: another process is writing it; wait for it, or name another output") from exc
        try:
            yield parts
        finally:
            for partial in parts.folder.glob("*.partial"):  # to free disk space; the next run writes them anew
                partial.unlink()
            if not parts.has_any():
                shutil.rmtree(parts.folder, ignore_errors=True)
