"""Choose the classes in a folder of drawings, and find the files in it that a command would not read.

A command that reads fewer drawings than the folder has must say so. Files that look like drawings therefore end the
command before it starts, unless the user accepts them with `--ignore-others`; other files are counted.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sketchbatch_client.drawings.folders import SOURCE_NOTE, files_below, label_of, source_of
from sketchbatch_client.drawings.passed_over import (
    PICTURE_SUFFIXES,
    has_drawing_name,
    is_hidden,
    is_left_out,
    is_output,
    is_packed_copy,
    link_within,
    pass_over,
    walk,
)
from sketchbatch_client.label_names import listed, nfc, problems_of, with_suggestions

from .errors import DrawingsRefused, OutputRefused

BEAR_CAT_DOG = ("bear", "cat", "dog")
"""The default classes, if the folder has them."""

GOOGLE_FOLDERS = ("numpy_bitmap", "simplified", "binary", "raw")
"""The folders of Google's layout, which have the same drawings in several formats."""
# Google's console saves the object full/numpy_bitmap/cat.npy under such a name.
_CONSOLE_NAME = re.compile(r"full(_|%2F)(numpy_bitmap|simplified|binary|raw)(_|%2F)(?P<name>.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Others:
    """The files of a folder that a command would not read; paths are relative to the folder."""

    drawings: tuple[Path, ...] = ()
    """Files that look like drawings."""
    empty: tuple[Path, ...] = ()
    """Folders of classes that have no file."""
    rest: tuple[Path, ...] = ()

    def counts(self) -> dict[str, int]:
        """Return the number of files by ending, for the JSON file of a run or of an exploration."""
        endings = [path.suffix.lower() or "no ending" for path in (*self.drawings, *self.rest)]
        return dict(sorted(Counter([*endings, *("empty folder" for _ in self.empty)]).items()))

    def check(self, folder: Path) -> None:
        """Raise DrawingsRefused if a class has no file, or if files look like drawings."""
        problems = []
        if self.drawings:
            problems.append(f"{_counted(len(self.drawings), 'file')} that would not be read: {_listed(self.drawings)}")
        if self.empty:
            problems.append(f"{_counted(len(self.empty), 'empty folder')}: {_listed(self.empty)}")
        if problems:
            raise DrawingsRefused(
                f"{folder}: expected drawings that can be read, got {' and '.join(problems)}; "
                "convert or remove them, or pass over them with --ignore-others"
            )

    def __str__(self) -> str:
        found = (*self.drawings, *self.empty, *self.rest)
        return f"{_counted(len(found), 'file')} of the folder passed over: {_listed(found)}" if found else ""


def choose_labels(folder: Path, found: Sequence[str], classes: str, *, is_default: bool) -> tuple[str, ...]:
    """Return the labels that `--classes` selects of the labels `found` in `folder`; names are compared in NFC.

    An empty `classes` selects bear, cat and dog if `folder` has them or `is_default`, the folder of `fetch`; otherwise
    all labels.

    Raises:
        DrawingsRefused: A label is missing, or is a name that Google's console gives to downloaded files.
    """
    own = {nfc(label): label for label in found}
    if classes == "all" or not (classes or is_default or own.keys() >= set(BEAR_CAT_DOG)):
        labels = tuple(own)
    else:
        named = [nfc(name.strip()) for name in classes.split(",")] if classes else BEAR_CAT_DOG
        labels = tuple(filter(None, named))
    check_labels(folder, labels, list(own))
    return labels


def check_labels(folder: Path, labels: Sequence[str], found: Sequence[str]) -> None:
    """Check that each of `labels` is in `found`, and may be a label of a model.

    Raises:
        DrawingsRefused: A label is missing or no plain text, or is a name that Google's console gives to its downloads.
    """
    for name in found:
        if match := _CONSOLE_NAME.fullmatch(name):
            raise DrawingsRefused(
                f"{folder}: the name of a file must be its class, such as {match['name']}, got {name}; remove "
                f"{name.removesuffix(match['name'])!r} from the names"
            )
    if missing := [label for label in labels if label not in found]:
        raise DrawingsRefused(
            f"{folder}: no drawings of {with_suggestions(missing, found)}; "
            f"the folder holds {_counted(len(found), 'class', 'classes')}: {listed(found, 12)}; "
            "--classes all takes all of them"
        )
    if problem := next(iter(problems_of(tuple(dict.fromkeys(labels)))), None):
        raise DrawingsRefused(f"{folder}: the name of a class must be plain text, but {problem}; rename its file")


def describe_choice(folder: Path, labels: Sequence[str], found: Sequence[str]) -> str:
    """Return the chosen classes as a line for the user."""
    number = f"all {len(found)}" if len(labels) == len(found) else f"{len(labels)} of the {len(found)}"
    return f"classes: {listed(labels, 12)} ({number} in {folder})"


def find_others(
    folder: Path, taken: Collection[Path], labels: Collection[str], *, excluded: Path | None = None
) -> Others:
    """Find the files below `folder` that are neither in `taken`, the files of all classes, nor pictures of a class.

    Not counted are hidden names, the folder `excluded`, and the other formats of a class in Google's layout. If
    `labels` lacks a class, the user chose between classes: then the files of the other classes do not count, and
    files that belong to no class are in `rest`.
    """
    taken, found = set(taken), set(map(label_of, taken))
    read = taken.union(*(files_below(path) for path in taken if path.is_dir()))
    is_choice = bool(found - set(labels))
    class_parents = {path.parent for path in taken if path.is_dir()}
    drawings: list[Path] = []
    empty: list[Path] = []
    rest: list[Path] = []
    for parent, folders, names in _visible_tree(folder, excluded):
        own = parent.relative_to(folder)
        if not folders and not names and parent.parent in class_parents and not (is_choice and own.name not in labels):
            empty.append(own)
        for path in (own / name for name in names):
            is_link = link_within(folder / path) is not None  # to a file that is read, or is found itself
            is_picture = parent in taken and path.suffix.lower() in PICTURE_SUFFIXES
            is_read = folder / path in read or (is_picture and not is_link)
            classes = _classes_of(path)
            is_unwanted = is_choice and not classes & set(labels)
            is_other_class = is_unwanted and bool(classes & found)
            if not (is_read or is_other_class or path.name == SOURCE_NOTE or _is_other_format(path, found)):
                is_known = is_link or is_packed_copy(folder / path) or is_output(path.name, parent)
                is_lost = looks_like_drawing(folder / path) and not is_unwanted and not is_known
                (drawings if is_lost else rest).append(path)
    return Others(tuple(drawings), tuple(empty), tuple(rest))


def check_only_synthetic(folder: Path) -> None:
    """Check that `folder` has no drawings, or is marked as a folder of synthetic ones.

    Raises:
        OutputRefused: `folder` has drawings of another origin, or none that is known.
    """
    note = folder / SOURCE_NOTE
    if note.exists() and source_of(folder).startswith("synthetic"):
        return
    inner = [folder, *folder.glob("*/")] if folder.is_dir() else []
    if note.exists() or any(looks_like_drawing(path) for each in inner for path in each.iterdir()):
        raise OutputRefused(f"{folder}: holds drawings that are not synthetic; name another folder")


def looks_like_drawing(path: Path) -> bool:
    """Return whether a file has the ending or the first bytes of drawings, of a picture or of a packed file."""
    return has_drawing_name(path.name) or pass_over(path).may_have_drawings


def _visible_tree(folder: Path, excluded: Path | None) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder, once, with the visible names of its folders and files, in order; follow links."""
    left_out = excluded.resolve() if excluded else None
    for parent, folders, names in walk(folder):
        if left_out in (resolved := parent.resolve(), *resolved.parents):
            continue
        yield (
            parent,
            [name for name in folders if not is_left_out(name)],
            [each for each in names if not is_hidden(each)],
        )


def _is_other_format(path: Path, found: Collection[str]) -> bool:
    return len(path.parts) == 2 and path.parts[0] in GOOGLE_FOLDERS and nfc(path.stem) in found


def _classes_of(path: Path) -> set[str]:
    """Return the classes to which a file may belong: the names of its folders, and its own before the first dot."""
    return {*map(nfc, path.parts[:-1]), nfc(path.name.split(".")[0])}


def _listed(paths: Sequence[Path]) -> str:
    """Join the first paths; several files of one folder and ending are one entry, such as owl/*.heic (3 files)."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        groups.setdefault((path.parent, path.suffix), []).append(path)
    texts = [
        str(found[0]) if len(found) == 1 else f"{parent / '*'}{suffix} ({len(found)} files)"
        for (parent, suffix), found in groups.items()
    ]
    return listed(texts)


def _counted(number: int, name: str, plural: str = "") -> str:
    return f"{number:,} {name if number == 1 else plural or name + 's'}"
