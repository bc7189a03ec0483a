"""Find the files that an argument of `score` names, and list what is passed over: files, globs, folders, "-"."""

import glob
import os
import re
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path

from ...drawings.folders import PICTURE_FOLDER, besides_pictures, files_below, find_labelled, pictures_in
from ...drawings.passed_over import (
    DRAWING_SUFFIXES,
    OUTPUT_MARKS,
    PICTURE_SUFFIXES,
    PassedOver,
    PassedOverList,
    drawing_suffix,
    has_drawing_name,
    is_hidden,
    is_left_out,
    is_output,
    is_packed_copy,
    link_within,
    pass_over,
    walk,
)
from ...errors import FileRefused, fails_again

STDIN = "-"


class Locations:
    """Tells whether two names of sources mean the same file, although one is relative, or leads through a link."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, name: str, folder: str) -> str:
        """Return the absolute path of a source that was named in the working directory `folder`; "" = that of today.

        Links to folders are followed. A link to a file is not, because a job may read one file by several names.
        """
        parent, file = os.path.split(os.path.join(folder, name))  # noqa: PTH118 - names are text
        if parent not in self._folders:
            self._folders[parent] = os.path.realpath(parent)
        return os.path.join(self._folders[parent], file)  # noqa: PTH118


def working_folder() -> str:
    """Return the working directory; "" if it was removed."""
    try:
        return os.getcwd()  # noqa: PTH109 - a manifest has it as text
    except FileNotFoundError:
        return ""


@contextmanager
def collecting(refused: list[FileRefused]) -> Iterator[None]:
    """Add a permanent error to `refused`, so that a user learns of all inputs that cannot be read at once."""
    try:
        yield
    except FileRefused as exc:
        if not fails_again(exc):
            raise
        refused.append(exc)


def input_paths(
    texts: Sequence[str],
    passed_over: PassedOverList,
    *,
    may_be_empty: bool = False,
    refused: list[FileRefused] | None = None,
    scored: Collection[str] = (),
) -> list[Path]:
    """Return each path that the arguments name, once: "-", a file, or a folder of pictures, which is one input.

    A folder stands for the files of drawings directly in it. If it has none, it stands for its labelled files. If it
    has none of these either, it stands for the files of drawings and the folders of pictures in the folders below it.
    A file or folder to which several paths in one argument lead, because of links, is read once; by one of the names
    `scored`, if there is one. One that is named relative and absolute is read once, too, by the first name.

    Raises FileRefused if a pattern matches no file, or if there is no drawing in a folder, unless they `may_be_empty`.
    The folder itself, or the folder in front of the first wildcard, must be there in any case. If `refused` is given,
    the errors about folders are added to it.
    """
    matches = [_matches(text, passed_over, may_be_empty) for text in texts]
    read = {match for each in matches for match in each}
    passed_over.inputs.update(map(str, read))
    parents = {match.parent for match in read - {*map(Path, texts)}}  # of the matches of patterns
    passed_over.inputs.update(str(parent) for parent in parents if _is_all_read(parent, read))
    folder = working_folder()
    places: dict[str, Path] = {}  # by absolute path
    skipped: dict[Path, str] = {}
    for each in matches:
        found: dict[Path, None] = {}
        for match in each:
            with nullcontext() if refused is None else collecting(refused):
                inner = _folder_paths(match, passed_over, may_be_empty) if match.is_dir() else [match]
                found.update(dict.fromkeys(inner))
        for path in _once(found, scored, skipped):
            places.setdefault(STDIN if str(path) == STDIN else os.path.join(folder, path), path)  # noqa: PTH118
    paths = dict.fromkeys(places.values())
    for path, kept in skipped.items():
        if path not in paths:
            passed_over.inputs.discard(str(path))
            passed_over.extend([PassedOver(str(path), f"the same as {kept}", False)])
    return list(paths)


def _once(paths: Collection[Path], scored: Collection[str], skipped: dict[Path, str]) -> Collection[Path]:
    """Return the paths of one argument without links to the file or folder of another one, which are `skipped`.

    Pictures whose folder is there are left out, too. Of several paths to a file, one in `scored` stays, else one
    without links.
    """
    paths = [path for path in paths if path.suffix.lower() not in PICTURE_SUFFIXES or path.parent not in paths]
    parents = {path.parent for path in paths}
    if not any(map(Path.is_symlink, paths)) and len(parents) == len({os.path.realpath(parent) for parent in parents}):
        return paths
    locations, links = Locations(), dict[Path, int]()

    def links_in(path: Path) -> int:
        """Return how many of the folders and the file of a path are links."""
        if path not in links:
            links[path] = path.is_symlink() + (links_in(path.parent) if path.parent != path else 0)
        return links[path]

    known = {*scored, *(os.path.dirname(name) for name in scored)}  # noqa: PTH120 - names are text
    places = {path: os.path.realpath(path) if path.is_symlink() else locations.of(str(path), "") for path in paths}
    first: dict[str, Path] = {}
    for path in sorted(places, key=lambda path: (str(path) not in known, links_in(path))):
        first.setdefault(places[path], path)
    skipped.update({path: str(first[place]) for path, place in places.items() if first[place] != path})
    return [path for path, place in places.items() if first[place] == path]


def _is_all_read(folder: Path, read: Container[Path]) -> bool:
    return all(path in read for path in folder.iterdir() if not is_hidden(path.name))


def _matches(text: str, passed_over: PassedOverList, may_be_empty: bool) -> list[Path]:
    """Return the files and folders that an argument names, without hidden matches of a pattern."""
    path = Path(text)
    if text == STDIN or not glob.has_magic(text) or path.exists():
        return [path]
    found = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - absolute, too
    if not found and not (may_be_empty and _fixed_folder(path).is_dir()):
        raise FileRefused(f"{text}: no file matches this pattern")
    hidden = {match for match in found if _is_hidden_match(match, text)}
    passed_over.extend(PassedOver(str(match), "hidden", False) for match in sorted(hidden))
    return [match for match in found if match not in hidden]


def _fixed_folder(pattern: Path) -> Path:
    """Return the folder in front of the first wildcard of a pattern."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _is_hidden_match(match: Path, pattern: str) -> bool:
    """Return whether a name that begins with `_` matches a pattern in which no name does so.

    The folders before the first wildcard are no part of the pattern. The module `glob` hides names with `.` in front.
    """
    parts = Path(pattern).parts
    fixed = len(_fixed_folder(Path(pattern)).parts)
    shows_hidden = any(re.match(r"_|\[[^!\]]*_", part) for part in parts[fixed:])
    return not shows_hidden and any(part[0] == "_" for part in match.parts[fixed:])


def _folder_paths(folder: Path, passed_over: PassedOverList, may_be_empty: bool) -> list[Path]:
    if files := _files_in(folder, passed_over):
        return files
    try:
        labelled = find_labelled(folder)
    except FileRefused:
        labelled = None
    if not labelled or all(map(_is_folder_of_pictures, labelled.files.values())):
        others = PassedOverList()
        below = _paths_below(folder, others)
        if not below and not may_be_empty:
            raise _without_drawings(folder, others) from None
        passed_over.add(others)
        return below
    passed_over.add(labelled.passed_over.with_reasons(_naming_folder))
    return [path for inner in labelled.files.values() for path in files_below(inner) or [inner]]


def _is_folder_of_pictures(path: Path) -> bool:
    """Return whether a labelled path is a folder of pictures that is no part of a layout of other tools.

    Such folders are read together with the other drawings of the folder above them: a folder may get the first one of
    them after it was scored.
    """
    return path.is_dir() and not files_below(path) and path.parent.name != PICTURE_FOLDER


def _without_drawings(folder: Path, others: PassedOverList) -> FileRefused:
    """Return the error for a folder that has no drawing in it or below it, but `others`."""
    if not others.count:
        return FileRefused(f"{folder}: expected drawings, got an empty folder")
    first, *more = others.entries
    found = f"{first.path} ({first.reason})" + (f" and {others.count - 1:,} more" if more else "")
    if others.count_with_drawings:
        found = others.describe(2)
    return FileRefused(f"{folder}: expected drawings, got none; not read: {found}")


def _files_in(folder: Path, passed_over: PassedOverList, *, with_folders: bool = True) -> list[Path]:
    """Return the files of drawings directly in a folder; if there are any, report its other files and folders."""
    entries = sorted(folder.iterdir())
    names = {path.name for path in entries}
    files = [path for path in entries if _is_file_of_drawings(path, names)]
    if files:
        others = (path for path in entries if with_folders or not path.is_dir())
        passed_over.extend(_why_not(path, names) for path in others if not _is_file_of_drawings(path, names))
    return files


def _is_file_of_drawings(path: Path, names: Container[str]) -> bool:
    """Return whether a file in a folder with the files `names` is an input.

    Outputs of jobs and links to other inputs of the folder are none. Of the .jsonl files, which often have metadata,
    those with drawings are inputs, packed or not.
    """
    target = link_within(path)
    if target and (_is_file_of_drawings(target, names) or is_output(target.name, target.parent)):
        return False
    if drawing_suffix(path.name) == ".jsonl":
        return path.is_file() and pass_over(path).may_have_drawings
    return (
        has_drawing_name(path.name)
        and drawing_suffix(path.name) in DRAWING_SUFFIXES
        and not any(f"{path.name}{end}" in names for end in OUTPUT_MARKS)
        and not is_packed_copy(path)
        and not path.is_dir()
    )


def _why_not(path: Path, names: Container[str]) -> PassedOver:
    """Return why a file in a folder of files of drawings is no input."""
    if link_within(path):
        return pass_over(path)
    if path.suffix.lower() in PICTURE_SUFFIXES and not is_hidden(path.name) and path.is_file():
        return PassedOver(
            str(path), f"a picture in a folder of files of drawings; add '{path.parent}/*{path.suffix}'", True
        )
    return _naming_folder(pass_over(path))


def _naming_folder(entry: PassedOver) -> PassedOver:
    """Add to the reason of a folder with drawings that the command may name it, too."""
    is_folder = entry.may_have_drawings and Path(entry.path).is_dir()
    return entry._replace(reason=f"{entry.reason}; add '{entry.path}'") if is_folder else entry


def _paths_below(folder: Path, others: PassedOverList) -> list[Path]:
    """Return the files of drawings and the folders of pictures in all folders below `folder`, as Spark writes them."""
    paths: list[Path] = []
    for inner, folders, _ in walk(folder):
        others.extend(pass_over(inner / name) for name in folders if is_left_out(name))
        if files := _files_in(inner, others, with_folders=False):
            paths += files
        else:
            paths += [inner] if pictures_in(inner) else []
            others.extend(each for each in besides_pictures(inner) if not Path(each.path).is_dir())
    return paths
