"""Finds model files: one model.onnx, or those of a repository NAME/VERSION/model.onnx, VERSION a number.

Names that begin with a dot are passed over: Kubernetes keeps what its links lead to in such folders, and people what
they have not finished copying. Must not know what is in a file.
"""

from dataclasses import dataclass
from pathlib import Path

Stamp = tuple[int, int, int]
"""Inode, nanoseconds of the last change, bytes: differs when the file is another, or was written."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file as it was when it was looked at."""

    path: Path

    name: str
    """The model's, by its folder; "" for one file, which says so itself."""

    version: str
    """Likewise."""

    stamp: Stamp

    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was looked at."""
        return _stamp(self.path) == self.stamp


def find(path: Path) -> list[ModelFile]:
    """The files at `path`, by name and then version as text; none where there are none.

    Raises:
        OSError: The file system does not answer: nothing can be said of what is there.
    """
    if not path.is_dir():
        return _file(path, "", "")
    return [
        file
        for name in _entries(path)
        for version in _entries(name)
        if version.name.isdecimal()
        for file in _file(version / "model.onnx", name.name, version.name)
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except (NotADirectoryError, FileNotFoundError, PermissionError):  # a README, just removed, a volume's lost+found
        return []


def _file(path: Path, name: str, version: str) -> list[ModelFile]:
    stamp = _stamp(path)
    return [ModelFile(path, name, version, stamp)] if stamp else []


def _stamp(path: Path) -> Stamp | None:
    """Of what stands behind `path`, through links; None where there is no file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
