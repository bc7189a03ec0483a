"""Find the labelled drawings in a folder, and list what the folder has besides them."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from ..errors import FileRefused
from ..label_names import listed, nfc
from .passed_over import (
    OUTPUT_MARKS,
    PACKED_SUFFIXES,
    PICTURE_SUFFIXES,
    PassedOver,
    PassedOverList,
    is_hidden,
    is_left_out,
    link_within,
    pass_over,
    walk,
)
from .passed_over import SOURCE_NOTE as SOURCE_NOTE  # re-exported

# Google's folders and suffixes, in the order in which they are searched.
_LAYOUTS = (
    ("numpy_bitmap", ".npy"),
    ("simplified", ".ndjson"),
    ("binary", ".bin"),
    ("raw", ".ndjson"),
)
_GOOGLE_FOLDERS = dict(_LAYOUTS)
_OUTPUTS = (".parquet", ".npy")  # endings of the outputs of jobs that are endings of drawings, too
_FILES = (".npy", ".ndjson", ".bin", ".parquet")  # endings of the files that may be parts of a label
PICTURE_FOLDER = "imagefolder"
_LABEL_KEY = "label="  # in front of the label in the names of folders that Spark and Hive write
_DESCRIBED = 10_000  # most files of a folder without drawings whose kind is looked up for the error message
_TABLE = ".parquet"  # at the end of the names of folders in which Spark writes the parts of a table


@dataclass(frozen=True, slots=True)
class LabelledFolder:
    """The drawings in a folder by label, and what is not read."""

    files: dict[str, Path]  # files of drawings, or folders of pictures, in the order of the labels
    passed_over: PassedOverList = field(default_factory=PassedOverList)


def labelled_files(folder: Path | str) -> dict[str, Path]:
    """Return the files or folders with the drawings in `folder`, by label; `find_labelled` describes the layouts."""
    return find_labelled(folder).files


def find_labelled(folder: Path | str) -> LabelledFolder:
    """Find the files or folders with the drawings in `folder`, by label, and list what is not read.

    The label is the name of the file or folder; `open_bitmaps` opens each path. The first layout that exists is used:
    numpy_bitmap/NAME.npy, NAME.npy, simplified/NAME.ndjson, NAME.ndjson, binary/NAME.bin, NAME.bin, raw/NAME.ndjson,
    NAME.parquet, label=LABEL/ or LABEL.parquet/ with files of drawings in it or below it, as Spark writes them,
    imagefolder/LABEL/ with pictures, LABEL/ with pictures, pictures in `folder`. Names that begin with "." or "_" are
    hidden.

    Raises FileRefused if the folder does not exist or has none of these layouts, or if two names are equal in NFC.
    """
    folder = Path(folder)
    _check_is_folder(folder)
    for inner, suffix in (*_LAYOUTS, (".", ".parquet")):
        for parent in (folder / inner, folder):
            if parent.is_dir() and (files := files_with_suffix(parent, (suffix,))):
                found = by_label(files)
                return LabelledFolder(found, PassedOverList(_besides(folder, parent, found)))
    if folders := [inner for inner in _folders(folder) if files_below(inner)]:
        found = by_label(folders)
        return LabelledFolder(found, PassedOverList(_besides(folder, folder, found)))
    for parent in (folder / PICTURE_FOLDER, folder):
        if folders := [inner for inner in _folders(parent) if pictures_in(inner)]:
            found = by_label(folders)
            return LabelledFolder(found, PassedOverList(_besides(folder, parent, found)))
    if pictures_in(folder):
        return LabelledFolder(by_label([folder]), PassedOverList(besides_pictures(folder)))
    raise FileRefused(
        f"{folder}: expected a NAME.npy for each label, got none, nor strokes or pictures{_what_is_there(folder)}"
    )


def _check_is_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        advice = f"name the folder that holds it, {folder.parent}"
        if folder.suffix.lower() == _TABLE:
            advice = "write a folder with a folder for each label, as docs/evaluation.md shows"
        raise FileRefused(f"{folder}: expected a folder with a file or folder for each label, got a file; {advice}")
    raise FileRefused(f"{folder}: no such folder; expected one with a NAME.npy for each label")


def _what_is_there(folder: Path) -> str:
    """Describe what a folder without labelled drawings has instead: drawings in inner folders, and unread files."""
    advice = _advice([inner for inner in _folders(folder) if pass_over(inner).may_have_drawings])
    inside = (path for path in sorted(folder.iterdir()) if not path.is_dir())
    others = PassedOverList(map(pass_over, islice(inside, _DESCRIBED)))
    if others.count_with_drawings:
        advice += f"; not read: {others.describe(2)}"
    return advice


def _advice(nested: list[Path]) -> str:
    """Return where the drawings in inner folders are and how to name them; "" if there are none."""
    if not nested:
        return ""
    if held_out := next(filter(None, map(held_out_folder, nested)), None):
        return f"; there are folders of trainings: name the held-out drawings of one, {held_out}"
    advice = f"; there are drawings in {listed([f'{inner.name}/' for inner in nested])}: name one of these folders"
    column, *others = {inner.name.partition("=")[0] if "=" in inner.name else "" for inner in nested}
    if column == _LABEL_KEY[:-1]:
        return advice
    if column and not others:
        advice += f"; or, if {column} is the label, rename each to {_LABEL_KEY}VALUE/, or write the column as label"
    elif len(nested) > 1 and not others and all(map(_has_files, nested)):
        advice += f"; or, if their names are the labels, rename each to {_LABEL_KEY}NAME/"
    return advice


def held_out_folder(folder: Path) -> Path | None:
    """Return the folder with the drawings that a training held out, if `folder` is that of a training."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    is_training = isinstance(config, dict) and config.keys() >= {"labels", "data_digest"}
    has_held_out = is_training and config.get("hold_out") != "none" and any((folder / "test").glob("*.npy"))
    return folder / "test" if has_held_out else None


def _has_files(folder: Path) -> bool:
    """Return whether a folder would be read under the name label=NAME."""
    return any(files_with_suffix(inner, _FILES) for inner, _, _ in walk(folder))


def label_of(path: Path) -> str:
    """Return the label of a path that `labelled_files` returned: its name in Unicode's normal form NFC."""
    if path.is_dir():
        name = path.name or path.resolve().name
        if name.startswith(_LABEL_KEY):  # Spark, Hive and pandas write "alarm clock" as label=alarm%20clock
            return nfc(unquote(name.removeprefix(_LABEL_KEY)).removesuffix(_TABLE))
        return nfc(name.removesuffix(_TABLE))
    return nfc(path.stem)


def source_of(folder: Path) -> str:
    """Return the origin of the drawings in `folder`: the text of its SOURCE.txt, or else the folder's name."""
    note = folder / SOURCE_NOTE
    if note.is_file():
        return note.read_text(encoding="utf-8", errors="replace").strip()
    return f"drawings in the folder {folder.resolve().name}"


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures directly in a folder, by name; a hidden file and a link to one of them are none."""
    return files_with_suffix(folder, PICTURE_SUFFIXES)


def files_below(folder: Path) -> list[Path]:
    """Return the files in and below a folder label=LABEL or LABEL.parquet, as Spark writes them; else none."""
    if not (folder.name.startswith(_LABEL_KEY) or folder.suffix == _TABLE) or not folder.is_dir():
        return []
    return [path for inner, _, _ in walk(folder) for path in files_with_suffix(inner, _FILES)]


def _besides_files(folder: Path) -> Iterator[PassedOver]:
    """Yield what a folder label=LABEL has besides the files of drawings in it and below it."""
    taken = set(files_below(folder))
    for inner, folders, names in walk(folder):
        yield from (pass_over(inner / name) for name in folders if is_left_out(name))
        yield from (_other_kind(inner / name, next(iter(taken))) for name in names if inner / name not in taken)


def besides_pictures(folder: Path) -> Iterator[PassedOver]:
    """Yield what a folder of pictures has besides pictures."""
    taken = set(pictures_in(folder))
    for path in sorted(folder.iterdir()):
        if path not in taken:
            yield pass_over(path)


def files_with_suffix(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files directly in a folder with one of these endings, in any case, by name.

    Left out are hidden files, outputs of jobs, and links to a file that is among the others: its drawings would count
    twice.

    Raises FileNotFoundError if the folder does not exist.
    """
    found: list[Path] = []
    links: list[Path] = []
    entries = list(os.scandir(folder))
    names = {entry.name for entry in entries}
    for entry in entries:
        is_taken = entry.name.lower().endswith(suffixes) and not is_hidden(entry.name)
        marks = OUTPUT_MARKS if entry.name.lower().endswith(_OUTPUTS) else ()
        if is_taken and not any(f"{entry.name}{mark}" in names for mark in marks):
            path = folder / entry.name
            if entry.is_symlink():
                links.append(path)
            elif not entry.is_dir():
                found.append(path)
    for path in links:
        target = link_within(path)
        if not path.is_dir() and not (target and target.name.lower().endswith(suffixes)):
            found.append(path)
    return sorted(found)


def _folders(parent: Path) -> list[Path]:
    return sorted(inner for inner in parent.glob("*/") if not is_hidden(inner.name))


def by_label(paths: Iterable[Path]) -> dict[str, Path]:
    """Return the files or folders by label. Raises FileRefused if two of them have the same label in NFC."""
    files: dict[str, Path] = {}
    for path in paths:
        label = label_of(path)
        if label in files:
            raise FileRefused(
                f"{path}: must not have the same label as {files[label].name}, got {label} twice (in NFC)"
            )
        files[label] = path
    return files


def _besides(folder: Path, parent: Path, files: dict[str, Path]) -> Iterator[PassedOver]:
    """Yield what `folder` and the inner folder `parent` of its layout have besides the labelled `files`."""
    taken = set(files.values())
    for path in sorted(parent.iterdir()):
        if path in taken:
            if path.is_dir():
                yield from _besides_files(path) if files_below(path) else besides_pictures(path)
        elif parent == folder and path.name in _GOOGLE_FOLDERS:
            yield from _other_form(path, files)
        else:
            yield _other_kind(path, next(iter(taken)))
    for path in sorted(folder.iterdir()) if parent != folder else ():
        if path != parent:
            yield from _other_form(path, files) if path.name in _GOOGLE_FOLDERS else (pass_over(path),)


def _other_kind(path: Path, taken: Path) -> PassedOver:
    """Return why a file next to the labelled ones is not read."""
    entry = pass_over(path)
    if not entry.may_have_drawings or path.is_dir() or path.suffix.lower() in PACKED_SUFFIXES:
        return entry
    kind = f"{taken.suffix} files" if taken.suffix and not taken.is_dir() else "folders of pictures"
    return entry._replace(reason=f"not read next to {kind}; move it into another folder")


def _other_form(folder: Path, files: dict[str, Path]) -> Iterator[PassedOver]:
    """Yield what one of Google's folders has: the same drawings in another form, or those of another label."""
    others = [
        path for path in files_with_suffix(folder, (_GOOGLE_FOLDERS[folder.name],)) if label_of(path) not in files
    ]
    reason = f"{next(iter(files.values())).parent.name}/ has no such file, and only that folder is read"
    yield from (PassedOver(str(path), reason, True) for path in others)
    yield PassedOver(str(folder), "another form of the same drawings", False)
