"""Find model files: a single model.onnx, or a repository NAME/VERSION/model.onnx in which VERSION is a number.

Names that begin with a dot are skipped: Kubernetes keeps the targets of its links under such names, and people keep
unfinished copies there. The module does not know what a model file contains.
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

    def is_unchanged(self) -> bool:
        """Return whether the path still holds the same file."""
        return read_stamp(self.path) == self.stamp


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
    return [ModelFile(path, name, version, stamp)] if stamp else []
