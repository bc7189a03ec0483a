"""Keeps the finished parts of a job beside its output, so that it can go on wherever it was stopped.

OUTPUT.parts/ has `manifest.json`, the plan; for each finished part an Arrow file of its rows, which appears only when
it is whole, and before it the part's rejects, if there are any; and `lock`, held by the process that is at it.
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
    """Some consecutive rows of a job, scored."""

    number: int
    rows: pa.Table
    """As `outputs.table` makes them."""
    rejects: list[str]
    """A line of JSON each."""
    digest: int
    """What the rows were made from."""


class Parts:
    """The folder of one job, in one process at a time; see `held`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = folder / "manifest.json"

    def earlier_plan(self) -> Plan | None:
        """What was begun here, if anything was."""
        try:
            return Plan.from_json(read_json(self._manifest)) if self.has_any() else None
        except (FileNotFoundError, ValueError):
            return None

    def begin(self, plan: Plan) -> None:
        """Notes what is begun."""
        write_json(self._manifest, plan.to_json())

    def has_any(self) -> bool:
        """Whether any part is finished."""
        return any(self.folder.glob("*.arrow"))

    def digest(self, part: int) -> int | None:
        """What the rows of a finished part were made from; None = it is not finished."""
        try:
            return self.read(part).digest
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):  # power that fails leaves files damaged
            return None

    def read(self, part: int) -> Part:
        """A finished part, which `digest` has found whole."""
        with pa.memory_map(os.fspath(self._rows(part))) as file:
            rows = pa.ipc.open_file(file).read_all()
        rows.validate(full=True)
        rejects = self._rejects(part)
        lines = rejects.read_text(encoding="utf-8").splitlines(keepends=True) if rejects.exists() else []
        digest = int(rows.schema.metadata[_DIGEST])
        return Part(number=part, rows=rows.replace_schema_metadata(), rejects=lines, digest=digest)

    def save(self, part: Part) -> None:
        """Finishes a part."""
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
        """Forgets all parts."""
        for path in self.folder.glob("part-*"):
            path.unlink()

    def _rows(self, part: int) -> Path:
        return self.folder / f"part-{part:07}.arrow"

    def _rejects(self, part: int) -> Path:
        return self.folder / f"part-{part:07}.rejects.jsonl"


@contextmanager
def held(output: Path) -> Iterator[Parts]:
    """The parts of `output`; on leaving, the folder goes too if there is no part in it.

    Raises:
        DiskFull: There is no room for the folder.
        JobRefused: Another process is at it.
    """
    parts = Parts(output.with_name(f"{output.name}.parts"))
    with room_for(output):
        parts.folder.mkdir(parents=True, exist_ok=True)
        lock_file = (parts.folder / "lock").open("w")
    with lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise JobRefused(f"{output}: another process is writing it; wait for it, or name another output") from exc
        try:
            yield parts
        finally:
            for unfinished in parts.folder.glob("*.partial"):  # whoever goes on writes it anew; a full disk wants room
                unfinished.unlink()
            if not parts.has_any():
                shutil.rmtree(parts.folder, ignore_errors=True)
