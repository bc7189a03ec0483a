"""Find model files: a single model.onnx, or a repository NAME/VERSION/model.onnx in which VERSION is a number.

Names that begin with a dot are skipped: Kubernetes keeps the targets of its links under such names, and people keep
unfinished copies there. The module does not know what a model file contains: every file next to it may contain a part
of its weights.
"""

from dataclasses import dataclass
from pathlib import Path

from ..file_stamp import FileStamp, read_stamp


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file as it was at one scan."""

    path: Path
    name: str  # model name, from the folder; empty for a single file, because its metadata contain the name
    version: str  # from the folder; empty for a single file
    stamp: FileStamp
    neighbours: tuple[tuple[str, FileStamp], ...] = ()
    """Names and stamps of the other files in its folder of the repository. For a single file: of the files in its
    folder whose names begin with its own name."""

    def is_unchanged(self) -> bool:
        """Return whether the path still holds the same file, with the same files next to it."""
        return _file(self.path, self.name, self.version) == [self]


def find(path: Path) -> list[ModelFile]:
    """Return the model files at `path`, sorted by name and version as text; raise OSError if the scan fails."""
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
    except (NotADirectoryError, FileNotFoundError, PermissionError):
        return []  # `folder` is a file, was just removed, or is the lost+found of a volume


def _file(path: Path, name: str, version: str) -> list[ModelFile]:
    stamp = read_stamp(path)
    return [ModelFile(path, name, version, stamp, _neighbours(path, "" if name else path.name))] if stamp else []


def _neighbours(path: Path, prefix: str) -> tuple[tuple[str, FileStamp], ...]:
    """Return the names and stamps of the other files in the folder of `path` whose names begin with `prefix`."""
    others = [each for each in _entries(path.parent) if each.name.startswith(prefix) and each.name != path.name]
    return tuple((each.name, stamp) for each in others if (stamp := read_stamp(each)))
