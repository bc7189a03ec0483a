"""Store the finished parts of a job next to its output, so that an interrupted job can resume.

OUTPUT.parts/ contains `manifest.json` with the plan, and `lock`, which the running process holds. Each finished part
has an Arrow file of its rows, which appears only when it is complete. If a part has rejects, a file of rejects appears
before the Arrow file.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..atomic import replacing, room_for
from ..errors import JobRefused
from .manifest import read_json, write_json
from .plan import Plan

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
_DIGEST = b"digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A scored range of rows of a job."""

    number: int
    rows: pa.Table  # lines of `outputs.table`
    rejects: list[str]  # one line of JSON per rejected row
    digest: int  # digest of the input rows


class Parts:
    """The folder of one job, used by one process at a time; see `locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = folder / "manifest.json"

    def earlier_plan(self) -> Plan | None:
        """Return the plan of an interrupted job; None if no part of it is finished."""
        try:
            return Plan.from_json(read_json(self._manifest)) if self.has_any() else None
        except (FileNotFoundError, ValueError):
            return None

    def begin(self, plan: Plan) -> None:
        """Store the plan."""
        write_json(self._manifest, plan.to_json())

    def has_any(self) -> bool:
        """Return whether any part is finished."""
        return any(self.folder.glob("*.arrow"))

    def digest(self, part: int) -> int | None:
        """Return the digest of the input rows of a part; None if the part is unfinished or damaged."""
        try:
            return self.read(part).digest
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):  # a power failure can damage files
            return None

    def read(self, part: int) -> Part:
        """Read a finished part for which `digest` is not None."""
        with pa.memory_map(os.fspath(self._rows(part))) as file:
            rows = pa.ipc.open_file(file).read_all()
        rows.validate(full=True)
        rejects = self._rejects(part)
        lines = rejects.read_text(encoding="utf-8").splitlines(keepends=True) if rejects.exists() else []
        digest = int(rows.schema.metadata[_DIGEST])
        return Part(number=part, rows=rows.replace_schema_metadata(), rejects=lines, digest=digest)

    def save(self, part: Part) -> None:
        """Store a finished part; the rows reach the disk before the file gets its final name."""
        if part.rejects:
            with replacing(self._rejects(part.number)) as partial:
                partial.write_text("".join(part.rejects), encoding="utf-8")
        with replacing(self._rows(part.number)) as partial, partial.open("wb") as file:
            rows = part.rows.replace_schema_metadata({_DIGEST: str(part.digest)})
            with pa.ipc.new_file(file, rows.schema, options=_OPTIONS) as writer:
                writer.write_table(rows)
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Delete all parts."""
        for path in self.folder.glob("part-*"):
            path.unlink()

    def _rows(self, part: int) -> Path:
        return self.folder / f"part-{part:07}.arrow"

    def _rejects(self, part: int) -> Path:
        return self.folder / f"part-{part:07}.rejects.jsonl"


@contextmanager
def locked(output: Path) -> Iterator[Parts]:
    """Lock the parts of an output; on exit, delete partial files, and the folder if it has no finished part.

    Raises DiskFull if the disk has no space for the folder, and JobRefused if another process holds the lock.
    """
    parts = Parts(output.with_name(f"{output.name}.parts"))
    with room_for(output):
        parts.folder.mkdir(parents=True, exist_ok=True)
        lock_file = (parts.folder / "lock").open("w")
    with lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise JobRefused(f"{output}: another process is writing it; wait for it, or name another output") from exc
        try:
            yield parts
        finally:
            for partial in parts.folder.glob("*.partial"):  # the next run writes them anew; a full disk needs the space
                partial.unlink()
            if not parts.has_any():
                shutil.rmtree(parts.folder, ignore_errors=True)
