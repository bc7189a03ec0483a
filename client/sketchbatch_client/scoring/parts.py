"""Store the finished parts of a job next to its output, so that an interrupted job can resume.

OUTPUT.parts/ contains `manifest.json` with the plan, and the file `lock`, which the running process locks. Each
finished part has an Arrow file of its rows, which appears only when it is complete. If a part has rejects, a file with
these rejects appears before the Arrow file. The file `replaces` records which existing OUTPUT the job may
replace: an older file after --restart, or its own output if the process ended before it wrote the manifest.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ..atomic import replacing, room_for
from ..errors import JobNotReady, JobRefused, OutputRefused
from ..file_stamp import file_stamp
from .manifest import Manifest, manifest_path, read_json, rejects_path, unreadable, write_json
from .plan import ALL, PartDigest, Plan, Shard

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
_DIGEST, _UNREAD = b"digest", b"unread_metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The result of scoring one part of a job."""

    number: int
    rows: pa.Table  # lines of `outputs.table`
    rejects: list[str]  # one line of JSON per rejected row
    digest: PartDigest
    unread_metadata: int = 0  # number of rows with metadata that cannot be read

    @property
    def unlabelled(self) -> int:
        """Number of rows whose label is empty, because their highest score is below `Plan.reject_below`."""
        return int(pc.sum(pc.equal(self.rows["label"], "")).as_py() or 0)


class Parts:
    """Stores and reads the finished parts of one job in a folder; one process at a time uses it, see `locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = folder / "manifest.json"
        self._replaces = folder / "replaces"
        self._next_manifest = folder / "manifest.next.json"

    @classmethod
    def of(cls, output: Path) -> "Parts":
        """Return the object for the folder OUTPUT.parts."""
        return cls(output.with_name(f"{output.name}.parts"))

    def earlier_plan(self) -> Plan | None:
        """Return the plan of an interrupted job; None if no part of it is finished.

        Raises JobRefused if the plan is missing or damaged, or if another version of the client wrote it.
        """
        try:
            plan = Plan.from_json(read_json(self._manifest))
        except (FileNotFoundError, ValueError) as exc:
            if self.has_any():  # later than the reading: another process may have just finished the job
                raise unreadable(self._manifest, exc) from exc
            return None
        return plan if self.has_any() else None

    def begin(self, plan: Plan) -> None:
        """Store the plan, before the first part is scored."""
        write_json(self._manifest, plan.to_json())

    def may_replace(self, *files: Path) -> None:
        """Record that the job may replace the file OUTPUT if it has the size and time of one of `files`."""
        with replacing(self._replaces) as partial:
            partial.write_text("".join(f"{_stamp(file)}\n" for file in files if file.exists()))

    def is_replaceable(self, output: Path) -> bool:
        """Return whether the job may replace the file OUTPUT; True if it is absent or empty."""
        return not output.exists() or not output.stat().st_size or self.is_begun_over(output)

    def is_begun_over(self, output: Path) -> bool:
        """Return whether OUTPUT is one of the files that `may_replace` recorded."""
        return output.exists() and _stamp(output) in self._recorded()

    def _recorded(self) -> list[str]:
        """Return what `may_replace` recorded, the output of this job last."""
        try:
            return self._replaces.read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return []

    def first_reason(self) -> str:
        """Return the reason of the first reject of a job without a good row."""
        with (self.folder / "rejects.next").open(encoding="utf-8") as lines:
            return str(json.loads(next(lines))["reason"])

    def publish(self, output: Path, manifest: Manifest) -> None:
        """Move `output.partial` and `rejects.next` of this folder to their places, then write the manifest.

        The manifest is stored in this folder before: after a power failure in between, `complete` moves the rest.
        """
        partial = self.folder / "output.partial"
        self.may_replace(output, partial)
        with replacing(self._next_manifest) as next_manifest:
            manifest.write(next_manifest)
        for path in (partial, self.folder / "rejects.next", self._replaces, self._next_manifest):
            _flush_to_disk(path)
        partial.replace(output)
        self.complete(output)

    def complete(self, output: Path) -> None:
        """Finish what `publish` began, if OUTPUT is the output that it moved; otherwise forget it."""
        if not self._next_manifest.exists():
            return
        rejects = self.folder / "rejects.next"
        if output.exists() and [_stamp(output)] == self._recorded()[-1:]:
            if rejects.exists() and rejects.stat().st_size:
                rejects.replace(rejects_path(output))
            elif rejects.exists():
                rejects_path(output).unlink(missing_ok=True)
            self._next_manifest.replace(manifest_path(output))
        self._next_manifest.unlink(missing_ok=True)
        rejects.unlink(missing_ok=True)

    def has_any(self) -> bool:
        """Return whether any part is finished."""
        return any(self.folder.glob("*.arrow"))

    def digest(self, part: int) -> PartDigest | None:
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
            digest=tuple(map(int, metadata[_DIGEST].split(b","))),
            unread_metadata=int(metadata.get(_UNREAD, 0)),
        )

    def save(self, part: Part) -> None:
        """Store a finished part; the rows reach the disk before the file gets its final name."""
        if part.rejects:
            with replacing(self._rejects(part.number)) as partial:
                partial.write_text("".join(part.rejects), encoding="utf-8")
        with replacing(self._rows(part.number)) as partial, partial.open("wb") as file:
            digest = ",".join(map(str, part.digest))
            rows = part.rows.replace_schema_metadata({_DIGEST: digest, _UNREAD: str(part.unread_metadata)})
            with pa.ipc.new_file(file, rows.schema, options=_OPTIONS) as writer:
                writer.write_table(rows)
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Delete the files of all parts."""
        for path in (*self.folder.glob("part-*.arrow"), *self.folder.glob("part-*.rejects.jsonl")):
            path.unlink()

    def remove(self) -> None:
        """Delete the folder, unless it has files that no job writes."""
        for pattern in ("manifest*.json", "replaces", "rejects.next", "stdin*", "unpacked-*", "lock"):
            for path in self.folder.glob(pattern):
                path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

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

    def digest(self, part: int) -> PartDigest | None:
        """Return the part digest of a part; None if the part is not finished."""
        return self.manifest.digests.get(part) if self.manifest else Parts.of(self.output).digest(part)


def check_is_ours(output: Path, *, remedy: str = "name another output, or use --restart to replace it") -> None:
    """Raise OutputRefused if OUTPUT or its rejects exist, no job wrote them, and no --restart allows a replacement.

    Raises JobRefused if the manifest of OUTPUT cannot be read.
    """
    if not Manifest.read(output) and not Parts.of(output).is_replaceable(output):
        reason = "has changed since a job wrote it" if manifest_path(output).exists() else "no job has written it"
        raise OutputRefused(f"{output}: exists, and {reason}; {remedy}")
    if (rejects := rejects_path(output)).exists() and not _has_rejects(rejects):
        raise OutputRefused(f"{rejects}: exists, and no job has written it; {remedy}")


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


def _has_rejects(path: Path) -> bool:
    """Return whether the first line of a file is that of a rejects file."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(1 << 20))
        return {"source", "reason"} <= set(first)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, if there is one, is on the disk, so that a later rename never precedes it."""
    if path.exists():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _stamp(file: Path) -> str:
    """Return size and modification time of a file, which stay if it is renamed."""
    stamp = file_stamp(file)
    return f"{stamp.size_bytes} {stamp.mtime_ns}"


def _suffix(shard: Shard) -> str:
    return f"-{shard.number:05}-of-{shard.shards:05}"


@contextmanager
def locked(output: Path) -> Iterator[Parts]:
    """Lock the folder of the parts of an output, until the context ends.

    At the end, delete partial files; if no part is finished, delete the whole folder.

    Raises DiskFull if the disk has no space for the folder, JobNotReady if another process holds the lock, and
    JobRefused if the system has no such locks.
    """
    try:
        import fcntl  # not on Windows, where all other commands work
    except ImportError as exc:
        reason = "file locks need Linux or macOS, and on Windows WSL; with --output - no lock is needed"
        raise JobRefused(f"{output}: cannot be locked: {reason}") from exc
    parts = Parts.of(output)
    with room_for(output):
        try:
            parts.folder.mkdir(parents=True, exist_ok=True)
            lock_file = (parts.folder / "lock").open("w")
        except FileExistsError as exc:
            raise OutputRefused(f"{parts.folder}: expected a folder, got a file; name another output") from exc
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
            if not parts.has_any() and (manifest_path(output).exists() or not parts.is_begun_over(output)):
                parts.remove()
