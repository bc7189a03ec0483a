"""Test with random trees that every file of an input is scored, rejected or listed as passed over, once."""

import os
from pathlib import Path

import numpy as np
import pytest
from sketchbatch_client.drawings.folders import files_below, find_labelled, pictures_in
from sketchbatch_client.drawings.passed_over import PassedOver, PassedOverList, is_hidden
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.scoring.inputs import find_sources
from sketchbatch_client.scoring.inputs.sources import PictureSource
from small_files import DRAWINGS, HEIC

STRAYS = {  # endings, files, and whether a user may miss drawings
    ".txt": (b"synthetic drawings, no pixels", False),
    ".json": (b'{"classes": ["cat"]}', False),
    ".heic": (HEIC, True),
    ".csv": (b"label,pixel0,pixel1\n", True),
    "": (b"", False),
    ".zip": (b"PK\x03\x04" + bytes(40), True),
    ".svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", True),
}
NAMES = ["cat", "dog (1)", "a[1]", "ice cream", "\u00e9t\u00e9", "x\ny", "_cache", ".git", "label=cat", "\u732b"]


def random_tree(root: Path, random: np.random.Generator) -> None:
    """Write folders, files of drawings, strays and hidden files, at most three folders deep."""
    folders = [root]
    for _ in range(random.integers(0, 5)):
        folder = folders[random.integers(len(folders))] / NAMES[random.integers(len(NAMES))]
        folder.mkdir(exist_ok=True)
        folders.append(folder)
    kinds = list(DRAWINGS)
    kinds = [kinds[index] for index in random.integers(0, len(kinds), random.integers(1, 4))]  # few kinds in one tree
    for _ in range(random.integers(1, 12)):
        folder, name = folders[random.integers(len(folders))], NAMES[random.integers(len(NAMES))]
        if random.random() < 0.7:
            suffix = kinds[random.integers(len(kinds))]
            (folder / f"{name}{suffix}").write_bytes(DRAWINGS[suffix])
        else:
            suffix = list(STRAYS)[random.integers(len(STRAYS))]
            if not (folder / f"{name}{suffix}").is_dir():
                (folder / f"{name}{suffix}").write_bytes(STRAYS[suffix][0])


def all_files(root: Path) -> set[Path]:
    return {Path(folder, name) for folder, _, names in os.walk(root) for name in names}


def covers(entry: PassedOver, path: Path) -> bool:
    return str(path) == entry.path or str(path).startswith(f"{entry.path}/")


def has_drawings(path: Path, root: Path) -> bool:
    """Return whether a user would miss a file: it has drawings or may have some, and is not hidden."""
    is_visible = not any(map(is_hidden, path.relative_to(root).parts))
    return is_visible and (path.suffix in DRAWINGS or STRAYS.get(path.suffix, (b"", False))[1])


def check_accounting(root: Path, read: set[Path], passed_over: PassedOverList) -> None:
    """Check that each file below `root` is read or passed over, once, and that each one with drawings is reported."""
    entries = [entry for entry in passed_over.entries if ".npz:" not in entry.path.lower()]
    for path in all_files(root):
        reasons = [entry for entry in entries if covers(entry, path)]
        assert (path in read) + len(reasons) == 1, (path, reasons)
        if path not in read and has_drawings(path, root):
            assert reasons[0].may_have_drawings, reasons
    assert len(passed_over.entries) == passed_over.count
    flagged = [entry for entry in entries if entry.may_have_drawings]
    assert all(any(covers(entry, path) for path in all_files(root)) for entry in flagged)


@pytest.mark.parametrize("seed", range(80))
def test_score_accounts_for_every_file(tmp_path, seed):
    """Of random trees of files, each file is read or passed over, and each row of a file is scored or rejected."""
    root, spool = tmp_path / "in", tmp_path / "spool"
    root.mkdir()
    spool.mkdir()
    random_tree(root, np.random.default_rng(seed))
    passed_over = PassedOverList()
    if not any(path.suffix in DRAWINGS and has_drawings(path, root) for path in all_files(root)):
        with pytest.raises(FileRefused, match=r"(?s)in: expected drawings, got (none; not read: .*|an empty folder)$"):
            find_sources([str(root)], spool, lambda _: None)
        return
    sources = find_sources([str(root)], spool, lambda _: None, passed_over=passed_over)
    read: set[Path] = set()
    for source in sources:
        block = source.block(0, len(source))
        assert len(block.rows) + len(block.rejects) == len(source)
        if isinstance(source, PictureSource):
            names = {Path(reject.source) for reject in block.rejects}
            read |= names | set(map(Path, source.locate(block.rows)[0]))
        else:
            read.add(Path(source.name.removesuffix(":x")))
    check_accounting(root, read, passed_over)
    archives = sum(path.suffix == ".NPZ" for path in read)
    arrays = [entry for entry in passed_over.entries if ".NPZ:" in entry.path]
    assert sum(entry.may_have_drawings for entry in arrays) == archives  # of `large`, and not of the labels `y`
    assert len(arrays) == 2 * archives


@pytest.mark.parametrize("seed", range(80))
def test_a_folder_of_labels_accounts_for_every_file(tmp_path, seed):
    """What `evaluate`, `train` and `explore` read of random trees, and what they pass over, is every file."""
    random_tree(tmp_path, np.random.default_rng(1000 + seed))
    try:
        found = find_labelled(tmp_path)
    except FileRefused:
        return  # without a file of a layout, or with two files for one label
    read: set[Path] = set()
    for path in found.files.values():
        read |= set(files_below(path) or pictures_in(path)) if path.is_dir() else {path}
    check_accounting(tmp_path, read, found.passed_over)
