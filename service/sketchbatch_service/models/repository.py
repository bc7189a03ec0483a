"""Find model files: a single model.onnx, or a repository NAME/VERSION/model.onnx in which VERSION is a number.

Names that begin with a dot are skipped: Kubernetes keeps the targets of its links under such names, and people keep
unfinished copies there. The module does not know what a model file contains: every file next to it may contain a part
of its weights.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sketchbatch.file_kind import describe_path

from ..file_stamp import FileStamp, denied, read_stamp

MODEL_NAME = "model.onnx"
MISPLACED = "model in the wrong place, not served"  # log event

_MAX_LISTED = 5  # names in an error message
_MAX_SEARCHED = 1000  # entries of a folder in which repositories are searched


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


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A file or folder of a repository that looks like a model, but is not served because of its name or place."""

    path: Path
    cause: str  # one line for the operator: the path, what is expected and what was found
    stamps: tuple[tuple[str, FileStamp], ...]  # names and stamps of the files there; a copy that is unfinished changes


class Found(NamedTuple):
    """The contents of a repository at one scan."""

    files: list[ModelFile]  # sorted by name and version as text
    misplaced: list[Misplaced]


def find(path: Path) -> list[ModelFile]:
    """Return the model files at `path`, sorted by name and version as text; raise OSError if the scan fails."""
    return scan(path).files


def scan(path: Path) -> Found:
    """Return the model files at `path`, and what looks like one but is not; raise OSError if the scan fails.

    If two folders of a model have the same number, such as 1 and 01, the one with the shortest name is taken.
    """
    found = Found([], [])
    if not path.is_dir():
        found.files.extend(_file(path, "", ""))
        return found
    for entry in _entries(path):
        if _is_denied(entry):
            found.misplaced.append(_misplaced(entry, denied()))
        elif _is_model(entry):
            place = path / entry.stem / "1" / MODEL_NAME
            found.misplaced.append(_misplaced(entry, f"must be in a folder of its name and version, such as {place}"))
        else:
            _scan_versions(entry, found)
    return found


def why_no_model(path: Path) -> str:
    """Return why `scan` found no model at `path`, and the path of a model or repository nearby if there is one."""
    if not path.is_dir():
        return "no such model file"
    if kind := describe_path(path):
        return f"expected an ONNX model, got {kind}"
    reasons = [f"no model there; a repository holds NAME/VERSION/{MODEL_NAME}, VERSION a number"]
    if advice := _other_level(path):
        reasons.append(advice)
    elif misplaced := scan(path).misplaced:
        reasons.append(misplaced[0].cause)
    return "; ".join(reasons)


def _scan_versions(folder: Path, found: Found) -> None:
    """Add the versions of the model in `folder` to `found`."""
    taken: dict[int, Path] = {}  # by number
    files: list[ModelFile] = []
    for entry in sorted(_entries(folder), key=lambda entry: len(entry.name)):
        if _is_denied(entry):
            problem = denied()
        elif entry.name.isdecimal():
            if versions := _file(entry / MODEL_NAME, folder.name, entry.name):
                first = taken.setdefault(int(entry.name), entry)
                files += versions if first is entry else []
            problem = _problem_of_number(entry, bool(versions), taken)
        else:
            problem = _problem_of_name(entry)
        if problem:
            found.misplaced.append(_misplaced(entry, problem))
    found.files.extend(sorted(files, key=lambda file: file.path))


def _problem_of_number(folder: Path, has_model: bool, taken: dict[int, Path]) -> str:
    """Return why the folder of a version is not served; "" if it is served, or holds an unfinished copy."""
    if has_model:
        first = taken[int(folder.name)]
        same = f"is version {int(folder.name)}, as is {first}, which is served; remove one of the two"
        return "" if first == folder else same
    names = [entry.name for entry in _listing(folder)]
    if not folder.is_dir() or any(name.startswith(".") for name in names):
        return ""
    return f"must hold a {MODEL_NAME}, got {', '.join(names[:_MAX_LISTED]) or 'no readable file'}"


def _problem_of_name(entry: Path) -> str:
    """Return why an entry in the folder of a model is not served; "" if it does not look like a model."""
    if _is_model(entry):
        place = entry.parent / "1" / MODEL_NAME
        return f"must be in a folder of its version, such as {place}"
    if not read_stamp(entry / MODEL_NAME):
        return ""
    number = re.search("[0-9]+", entry.name)
    is_free = number and not (entry.parent / number[0]).exists()
    return f"must be a number, got {entry.name!r}" + (f"; rename it to {number[0]}" if number and is_free else "")


def _misplaced(path: Path, problem: str) -> Misplaced:
    own = read_stamp(path)
    inside = ((entry.name, stamp) for entry in _entries(path) if (stamp := read_stamp(entry)))
    return Misplaced(path, f"{path}: {problem}", ((path.name, own), *inside) if own else ())


def _is_model(path: Path) -> bool:
    return path.suffix == ".onnx" and read_stamp(path) is not None and not path.is_dir()


def _other_level(path: Path) -> str:
    """Return which path to use if `path` is one or two levels of a repository too deep or too high; "" if unknown."""
    if read_stamp(path / MODEL_NAME) and path.absolute().name.isdecimal():
        repository = _parent(_parent(path))
        return (
            f"{path} is one version of a model: use --model {repository}, or --model {path / MODEL_NAME} for it alone"
        )
    if versions := [entry for entry in _entries(path) if entry.name.isdecimal() and read_stamp(entry / MODEL_NAME)]:
        newest = max(versions, key=lambda entry: int(entry.name)) / MODEL_NAME
        return f"{path} is one model of a repository: use --model {_parent(path)}, or --model {newest} for it alone"
    entries = _entries(path)[:_MAX_SEARCHED]
    if inner := next((entry for entry in entries if entry.is_dir() and scan(entry).files), None):
        return f"{inner} is a repository: use --model {inner}"
    if model := next(filter(_is_model, entries), None):
        return f"{model} is one model: use --model {model}"
    return ""


def _parent(path: Path) -> Path:
    return path.parent if path.name not in ("", "..") else Path(os.path.abspath(path)).parent  # noqa: PTH100 - resolves ".."


def _is_denied(folder: Path) -> bool:
    """Return whether this process may not list a folder, or not read the files in it; files count as permitted."""
    if folder.name == "lost+found":  # of a volume
        return False
    try:
        os.scandir(folder).close()
        (folder / MODEL_NAME).stat()
    except PermissionError:
        return True
    except OSError:  # a file, a missing model file, or a failure that the scan itself raises
        return False
    return False


def _entries(folder: Path) -> list[Path]:
    return [entry for entry in _listing(folder) if not entry.name.startswith(".")]


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (NotADirectoryError, FileNotFoundError, PermissionError):
        return []  # `folder` is a file, was just removed, or is the lost+found of a volume


def _file(path: Path, name: str, version: str) -> list[ModelFile]:
    stamp = read_stamp(path)
    return [ModelFile(path, name, version, stamp, _neighbours(path, "" if name else path.name))] if stamp else []


def _neighbours(path: Path, prefix: str) -> tuple[tuple[str, FileStamp], ...]:
    """Return the names and stamps of the other files in the folder of `path` whose names begin with `prefix`."""
    others = [each for each in _entries(path.parent) if each.name.startswith(prefix) and each.name != path.name]
    return tuple((each.name, stamp) for each in others if (stamp := read_stamp(each)))
