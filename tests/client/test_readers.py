"""Test that files of every format are read through one interface, and that unsuitable files are refused."""

import io
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sketchbatch_client import rasterize
from sketchbatch_client.drawings.readers import (
    label_of,
    labelled_files,
    open_bitmaps,
    read_bitmaps,
    source_of,
)
from sketchbatch_client.drawings.simplify import simplify
from sketchbatch_client.drawings.strokes import open_strokes
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.evaluation import open_labelled


@pytest.mark.parametrize("shape", [(5, 784), (5, 28, 28), (5, 28, 28, 1), (5, 1, 28, 28)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_bitmaps_of_every_shape_and_header_are_read(tmp_path, noise, shape, version):
    """The array may have an axis for its one channel, and the header any format."""
    path = tmp_path / "cat.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, noise(5).reshape(shape), version=version)
    bitmaps = read_bitmaps(path)
    assert np.array_equal(bitmaps[:], noise(5))
    assert np.array_equal(bitmaps[np.array([4, 0, 4])], noise(5)[[4, 0, 4]])
    assert np.array_equal(bitmaps.head(3)[-2:], noise(5)[1:3])


def test_a_npy_without_rows_is_valid(tmp_path):
    """An .npy file without rows is valid, for example the file of a class without drawings."""
    np.save(tmp_path / "none.npy", np.empty((0, 784), np.uint8))
    assert read_bitmaps(tmp_path / "none.npy")[:].shape == (0, 28, 28)


@pytest.mark.parametrize("shape", [(784,), (28, 28), (28, 28, 1), (1, 28, 28)])
def test_a_single_drawing_is_one_row(tmp_path, noise, shape):
    """A file of one drawing needs no axis for the rows."""
    np.save(tmp_path / "cat.npy", noise(1).reshape(shape))
    assert np.array_equal(read_bitmaps(tmp_path / "cat.npy")[:], noise(1))


def npy_bytes(array: np.ndarray) -> bytes:
    """Return the bytes that `np.save` writes for an array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WHOLE = npy_bytes(np.zeros((10, 784), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a .npy file, got an empty file"),
        (b"\n <!DOCTYPE html><html>Sign in", "got a web page"),
        (b"PK\x03\x04rest of a zip", "expected a .npy file, got a zip archive"),
        (WHOLE[:-1], "truncated: 10 rows of 784 are 7840 bytes, got 7839"),
        (WHOLE[:60], "header cannot be read"),
        (WHOLE.replace(b"(10, 784)", b"(10, 784 "), "header cannot be read"),
        (WHOLE[:8] + (20000).to_bytes(2, "little") + b"{" * 20000, "header cannot be read"),
        (WHOLE.replace(b"(10, 784)", b"(-1, 784)"), r"got uint8 \(-1, 784\)"),
        (WHOLE + b"x", "too long: 10 rows of 784 are 7840 bytes, got 7841"),
        (b"\x93NUMPY\x09\x00" + WHOLE[8:], "header cannot be read"),
        (npy_bytes(np.zeros((10, 784))), r"expected uint8 \(rows, 784\) or \(rows, 28, 28\), got float64 \(10, 784\)"),
        (npy_bytes(np.zeros((10, 783), np.uint8)), r"got uint8 \(10, 783\)"),
        (npy_bytes(np.zeros((10, 28, 28, 3), np.uint8)), r"got uint8 \(10, 28, 28, 3\)"),
        (npy_bytes(np.zeros((10, 28, 28), np.float32)), r"got float32 .*; convert it: \(x \* 255\).round"),
        (npy_bytes(np.zeros((10, 28, 28), bool)), r"got bool .*; convert it: np\.uint8\(255\) \* x"),
        (npy_bytes(np.zeros((10, 784), np.int64)), r"got int64 .*; convert it: x\.astype\(np\.uint8\)"),
        (npy_bytes(np.array(None)), r"got object \(\)"),
    ],
)
def test_a_file_that_is_not_a_npy_of_bitmaps_is_refused(tmp_path, content, message):
    """A file that is not an .npy file of bitmaps is refused.

    The error is one line, which contains the path, the expected contents and the actual contents.
    """
    path = tmp_path / "cat.npy"
    path.write_bytes(content)
    with pytest.raises(FileRefused, match=message) as caught:
        read_bitmaps(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_code_in_a_file_is_run(tmp_path):
    """Python objects in an .npy or .npz file are not unpickled, because unpickling could run code."""
    trap, sprung = tmp_path / "cat.npy", tmp_path / "sprung"
    for save in (np.save, np.savez):
        with trap.open("wb") as file:
            save(file, np.array([Trap(sprung)], object))
        assert b"touch" in trap.read_bytes()
        with pytest.raises(FileRefused):
            open_bitmaps(trap)
    assert not sprung.exists()


class Trap:
    """Create the file `path` when an object of this class is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_claims_a_huge_header_costs_no_memory(tmp_path):
    """A file that claims to have a header of 256 MB is refused, and the reader does not read the header into memory."""
    path = tmp_path / "cat.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + (1 << 28).to_bytes(4, "little"))
    os.truncate(path, 1 << 29)
    tracemalloc.start()
    with pytest.raises(FileRefused, match="header cannot be read"):
        read_bitmaps(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_missing_file_or_folder_is_refused(tmp_path):
    """A missing file or folder is refused with its path and the reason."""
    with pytest.raises(FileRefused, match=r"none\.npy: cannot be read: No such file"):
        read_bitmaps(tmp_path / "none.npy")
    with pytest.raises(FileRefused, match="no such folder"):
        labelled_files(tmp_path / "none")
    np.save(tmp_path / "cat.npy", np.zeros((1, 784), np.uint8))
    with pytest.raises(FileRefused, match=rf"cat\.npy: expected a folder .*, got a file; name .*, {tmp_path}$"):
        labelled_files(tmp_path / "cat.npy")
    (tmp_path / "cat.npy").rename(tmp_path / "cat.parquet")
    with pytest.raises(FileRefused, match=r"got a file; write a folder with a folder for each label, as docs/evalua"):
        labelled_files(tmp_path / "cat.parquet")
    (tmp_path / "cat.parquet").unlink()
    with pytest.raises(FileRefused, match=r"expected a NAME\.npy for each label, got none"):
        labelled_files(tmp_path)


def test_a_folder_gives_its_files_by_label(tmp_path):
    """`labelled_files` accepts a folder with one file per label, and a folder whose subfolder numpy_bitmap/ has them.

    A label may contain spaces.
    """
    inner = tmp_path / "numpy_bitmap"
    inner.mkdir()
    for label in ("t-shirt", "The Eiffel Tower"):
        (inner / f"{label}.npy").write_bytes(WHOLE)
    assert list(labelled_files(tmp_path)) == ["The Eiffel Tower", "t-shirt"]
    assert list(labelled_files(inner)) == ["The Eiffel Tower", "t-shirt"]


def test_a_folder_has_an_origin(tmp_path):
    """The origin of the drawings in a folder is the text of SOURCE.txt or, without this file, the folder's name."""
    assert source_of(tmp_path) == f"drawings in the folder {tmp_path.name}"
    (tmp_path / "SOURCE.txt").write_text("synthetic sketches\n")
    assert source_of(tmp_path) == "synthetic sketches"


STROKES = [[[[0, 255], [0, 10 * n]], [[9, 99], [200, 20]]] for n in range(12)]


def write_drawings(folder):
    """Write the same 12 drawings in every format; return their bitmaps."""
    bitmaps = np.stack([rasterize(strokes) for strokes in STROKES])
    np.save(folder / "cat.npy", bitmaps.reshape(-1, 784))
    lines = [json.dumps({"drawing": strokes}) + "\n" for strokes in STROKES]
    (folder / "cat.ndjson").write_text("".join(lines))
    with (folder / "cat.bin").open("wb") as file:
        for strokes in STROKES:
            file.write(struct.pack("<Q2sbIH", 1, b"VE", 1, 0, len(strokes)))
            for xs, ys in strokes:
                file.write(struct.pack("<H", len(xs)) + bytes(xs) + bytes(ys))
    (folder / "cat").mkdir()
    for row, bitmap in enumerate(bitmaps):
        Image.fromarray(bitmap).save(folder / "cat" / f"{row:02}.{'png' if row % 2 else 'PNG'}")
    return bitmaps


@pytest.mark.parametrize("name", ["cat.npy", "cat.ndjson", "cat.bin", "cat"])
def test_every_format_is_read_through_one_interface(tmp_path, name):
    """For a file of any format, `len` returns the number of drawings, and slices are bitmaps: uint8 (rows, 28, 28)."""
    bitmaps = write_drawings(tmp_path)
    rows = open_bitmaps(tmp_path / name)
    assert len(rows) == 12
    for part in (slice(None), slice(3, 5), slice(-2, None), slice(None, None, 5), slice(20, 30)):
        assert np.array_equal(rows[part], bitmaps[part])
        assert (rows[part].dtype, rows[part].shape[1:]) == (np.uint8, (28, 28))


@pytest.mark.real_drawings
def test_line_i_of_the_strokes_is_row_i_of_the_bitmaps(quickdraw):
    """Line i of Google's file of strokes and row i of the file of bitmaps are the same drawing."""
    strokes = open_bitmaps(quickdraw / "simplified" / "cat.ndjson")
    published = open_bitmaps(quickdraw / "numpy_bitmap" / "cat.npy")
    assert np.abs(strokes[5:25].astype(int) - published[5:25]).max() <= 18  # with cairo, the difference is 0


@pytest.mark.parametrize("screen", [[[[300, 700], [40, 50], [0, 9]]], [[[300, 700], [40, 50]]], [[[-9, 9], [4, 5]]]])
def test_strokes_in_screen_pixels_are_simplified_first(tmp_path, screen):
    """Strokes with times, or with points outside 0 to 255, are in screen pixels and are simplified before rendering."""
    (tmp_path / "cat.ndjson").write_text(json.dumps({"drawing": screen}))
    assert np.array_equal(open_bitmaps(tmp_path / "cat.ndjson")[:][0], rasterize(simplify(screen)))


@pytest.mark.parametrize("side", [1, 200, 400])
def test_a_canvas_of_any_size_gives_the_same_bitmap(tmp_path, side):
    """A drawing gives the same bitmap whether its canvas is 1, 200 or 400 units wide.

    The drawing is scaled to the square of 0 to 255 before it is rendered.
    """
    square = [
        [
            [0.2 * side, 0.7 * side, 0.7 * side, 0.2 * side, 0.2 * side],
            [0.2 * side] * 2 + [0.7 * side] * 2 + [0.2 * side],
        ]
    ]
    (tmp_path / "cat.ndjson").write_text(json.dumps({"drawing": square}))
    full = [[[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]]]
    assert np.array_equal(open_bitmaps(tmp_path / "cat.ndjson")[:][0], rasterize(full))


def test_hidden_files_and_folders_are_ignored(tmp_path):
    """Hidden files and folders are ignored, because macOS creates hidden files next to other files."""
    write_drawings(tmp_path)
    (tmp_path / "._cat.npy").write_bytes(b"created by macOS")
    assert set(labelled_files(tmp_path)) == {"cat"}
    pictures = tmp_path / "pictures"
    (pictures / ".thumbs").mkdir(parents=True)
    Image.new("L", (28, 28)).save(pictures / ".thumbs" / "1.png")
    (pictures / "owl").mkdir()
    Image.new("L", (28, 28)).save(pictures / "owl" / "1.png")
    assert set(labelled_files(pictures)) == {"owl"}


def test_malformed_lines_and_pictures_are_rejected_or_skipped(tmp_path):
    """Reading a malformed line or picture raises an error.

    With `skip_malformed`, malformed lines and pictures are skipped, counted and listed.
    """
    bitmaps = write_drawings(tmp_path)
    with (tmp_path / "cat.ndjson").open("a") as file:
        file.write("oops\n" + json.dumps({"drawing": STROKES[0]}))
    (tmp_path / "cat" / "05.png").write_bytes(b"oops")
    (tmp_path / "cat" / "._06.png").write_bytes(b"created by macOS")
    with pytest.raises(FileRefused, match=r"cat\.ndjson:13: not JSON"):
        open_bitmaps(tmp_path / "cat.ndjson")[:]
    lines = open_bitmaps(tmp_path / "cat.ndjson", skip_malformed=True)
    assert np.array_equal(lines[:], [*bitmaps, bitmaps[0]])
    assert (lines.malformed_count, lines.malformed[0].number) == (1, 13)
    with pytest.raises(FileRefused, match=r"05\.png: expected a picture \(PNG"):
        open_bitmaps(tmp_path / "cat")[:]
    pictures = open_bitmaps(tmp_path / "cat", skip_malformed=True)
    assert np.array_equal(pictures[:], np.delete(bitmaps, 5, axis=0))
    assert (pictures.malformed_count, pictures.malformed[0].number) == (1, 6)
    assert len(open_bitmaps(tmp_path / "cat.npy", skip_malformed=True)) == 12


def test_the_first_layout_that_exists_is_used(tmp_path):
    """If a folder has the files of a label in several layouts, the layout with the highest precedence is used.

    The test adds one layout after another, from the lowest precedence to the highest. The labels are sorted.
    """
    pictures = ["{}/1.png", "imagefolder/{}/1.jpg"]
    strokes = ["raw/{}.ndjson", "{}.bin", "binary/{}.bin", "{}.ndjson", "simplified/{}.ndjson"]
    for layout in (*pictures, *strokes, "{}.npy", "numpy_bitmap/{}.npy"):
        for label in ("t-shirt", "The Eiffel Tower"):
            path = tmp_path / layout.format(label)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        files = labelled_files(tmp_path)
        assert list(files) == ["The Eiffel Tower", "t-shirt"]
        assert [label_of(file) for file in files.values()] == list(files)
        assert files["t-shirt"] == (tmp_path / layout.format("t-shirt").removesuffix("/1.png").removesuffix("/1.jpg"))


def test_a_folder_of_pictures_is_one_label(tmp_path, monkeypatch):
    """A folder of pictures is one label, which is the name of the folder.

    The name may contain dots. The folder may be given as the path ".".
    """
    folder = tmp_path / "st.bernard"
    folder.mkdir()
    (folder / "1.jpeg").touch()
    assert labelled_files(folder) == {"st.bernard": folder}
    assert label_of(folder) == "st.bernard"
    monkeypatch.chdir(folder)
    (path,) = labelled_files(type(folder)("."))
    assert path == "st.bernard"


def test_paths_may_be_text(tmp_path):
    """Notebooks pass paths as `str`."""
    (tmp_path / "cat.npy").write_bytes(WHOLE)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat.ndjson").write_text('{"drawing": [[[0, 255], [0, 255]]]}\n')
    rows = len(read_bitmaps(str(tmp_path / "cat.npy")))
    assert len(open_bitmaps(str(tmp_path / "cat.npy"))) == rows
    assert len(open_strokes(str(tmp_path / "in" / "cat.ndjson"))) == 1
    assert list(labelled_files(str(tmp_path))) == ["cat"]
    assert open_labelled(str(tmp_path), ("cat",)).source == f"drawings in the folder {tmp_path.name}"
