"""Files in Google's layout: what is read, and what is refused with what was expected and what came."""

import numpy as np
import pytest
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.readers import labelled_files, read_bitmaps, source_of


@pytest.mark.parametrize("shape", [(5, 784), (5, 28, 28)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_bitmaps_are_mapped_not_copied(tmp_path, noise, shape, version):
    """Both shapes, any header length: the same rows, read-only, without loading the file."""
    path = tmp_path / "cat.npy"
    with path.open("wb") as file:
        np.lib.format.write_array(file, noise(5).reshape(shape), version=version)
    bitmaps = read_bitmaps(path)
    assert isinstance(bitmaps, np.memmap)
    assert not bitmaps.flags.writeable
    assert np.array_equal(bitmaps, noise(5))


def test_a_file_without_rows_is_no_rows(tmp_path):
    """An empty class is not an error by itself."""
    np.save(tmp_path / "none.npy", np.empty((0, 784), np.uint8))
    assert read_bitmaps(tmp_path / "none.npy").shape == (0, 28, 28)


def npy_bytes(array: np.ndarray) -> bytes:
    """What np.save writes."""
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


WHOLE = npy_bytes(np.zeros((10, 784), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a .npy file, got an empty one"),
        (b"\n <!DOCTYPE html><html>Sign in", "got a web page saved under that name"),
        (b"PK\x03\x04rest of a zip", r"expected a .npy file \(first bytes b'\\x93NUMPY'\), got b'PK"),
        (WHOLE[:-1], "truncated: 10 rows of 784 are 7840 bytes, got 7839"),
        (WHOLE[:60], "header cannot be read"),
        (WHOLE.replace(b"(10, 784)", b"(10, 784 "), "header cannot be read"),
        (WHOLE[:8] + (20000).to_bytes(2, "little") + b"{" * 20000, "header cannot be read"),
        (WHOLE.replace(b"(10, 784)", b"(-1, 784)"), "too long"),
        (WHOLE + b"x", "too long: 10 rows of 784 are 7840 bytes, got 7841"),
        (b"\x93NUMPY\x09\x00" + WHOLE[8:], "header cannot be read"),
        (npy_bytes(np.zeros((10, 784))), r"expected uint8 \(rows, 784\) or \(rows, 28, 28\), got float64 \(10, 784\)"),
        (npy_bytes(np.zeros((10, 783), np.uint8)), r"got uint8 \(10, 783\)"),
        (npy_bytes(np.zeros(784, np.uint8)), r"got uint8 \(784,\)"),
        (npy_bytes(np.asfortranarray(np.zeros((10, 784), np.uint8))), "Fortran order"),
        (npy_bytes(np.array(None)), r"got object \(\)"),
    ],
)
def test_what_is_no_file_of_bitmaps_is_refused(tmp_path, content, message):
    """One line: the path, what was expected, what came."""
    path = tmp_path / "cat.npy"
    path.write_bytes(content)
    with pytest.raises(FileRefused, match=message) as caught:
        read_bitmaps(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_folder_is_refused(tmp_path):
    """The path is in the message."""
    with pytest.raises(FileRefused, match=r"none\.npy: cannot be read: No such file"):
        read_bitmaps(tmp_path / "none.npy")
    with pytest.raises(FileRefused, match="no such folder"):
        labelled_files(tmp_path / "none")
    with pytest.raises(FileRefused, match=r"expected a NAME\.npy for each label, got none"):
        labelled_files(tmp_path)


def test_a_folder_gives_its_files_by_label(tmp_path):
    """Google's numpy_bitmap/ inside the folder is found; labels may have spaces."""
    inner = tmp_path / "numpy_bitmap"
    inner.mkdir()
    for label in ("t-shirt", "The Eiffel Tower"):
        (inner / f"{label}.npy").write_bytes(WHOLE)
    assert list(labelled_files(tmp_path)) == ["The Eiffel Tower", "t-shirt"]
    assert list(labelled_files(inner)) == ["The Eiffel Tower", "t-shirt"]


def test_a_folder_says_where_its_drawings_come_from(tmp_path):
    """By its note, or else by its name."""
    assert source_of(tmp_path) == f"drawings in the folder {tmp_path.name}"
    (tmp_path / "SOURCE.txt").write_text("synthetic sketches\n")
    assert source_of(tmp_path) == "synthetic sketches"
