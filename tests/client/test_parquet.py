"""Test that drawings are read from Parquet files and .npz archives, and that damaged files are refused."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from sketchbatch_client.drawings.images import decode_image
from sketchbatch_client.drawings.npy import open_npz
from sketchbatch_client.drawings.parquet.rows import ParquetRows
from sketchbatch_client.drawings.readers import open_bitmaps
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.scoring.inputs import InputOptions, find_sources
from sketchbatch_client.scoring.inputs.sources import ParquetSource


def encoded(bitmap):
    """Encode a bitmap as PNG."""
    file = io.BytesIO()
    Image.fromarray(bitmap).save(file, "PNG")
    return file.getvalue()


COLUMNS = {
    "bytes": lambda rows: pa.array([row.tobytes() for row in rows]),
    "large bytes": lambda rows: pa.array([row.tobytes() for row in rows], pa.large_binary()),
    "784 bytes": lambda rows: pa.array([row.tobytes() for row in rows], pa.binary(784)),
    "numbers": lambda rows: pa.array([row.ravel().tolist() for row in rows]),
    "784 numbers": lambda rows: pa.array([row.ravel().tolist() for row in rows], pa.list_(pa.uint8(), 784)),
    "large lists": lambda rows: pa.array([row.ravel().tolist() for row in rows], pa.large_list(pa.int64())),
    "28 times 28": lambda rows: pa.array([row.tolist() for row in rows]),
    "28 times 28 times 1": lambda rows: pa.array([row[..., None].tolist() for row in rows]),
    "1 times 28 times 28": lambda rows: pa.array([row[None].tolist() for row in rows]),
    "dictionary": lambda rows: pa.array([row.tobytes() for row in rows]).dictionary_encode(),
    "views of bytes": lambda rows: pa.array([row.tobytes() for row in rows], pa.binary_view()),
    "pictures": lambda rows: pa.array([encoded(row) for row in rows]),
    "pictures with paths": lambda rows: pa.array([{"bytes": encoded(row), "path": None} for row in rows]),
}


@pytest.fixture
def rows(noise):
    """Return 300 random bitmaps with paper (0) at the border, as in bitmaps of drawings."""
    bitmaps = noise(300)
    bitmaps[:, [0, -1]] = bitmaps[:, :, [0, -1]] = 0
    return bitmaps


@pytest.mark.parametrize("kind", COLUMNS)
def test_drawings_are_found_in_a_column_of_any_kind(tmp_path, rows, kind):
    """The source finds the column of drawings by its type and contents, not by its name.

    Blocks of rows can be read in any order, and a block can have rows of two row groups of the Parquet file.
    """
    table = pa.table({"word": ["cat"] * len(rows), "drawing": COLUMNS[kind](rows), "n": range(len(rows))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=101)
    (source,) = find_sources([str(tmp_path / "a.parquet")], tmp_path, lambda path: None)
    assert len(source) == 300
    assert not source.has_key_ids
    for start in (0, 30, 90, 270, 60):
        block = source.block(start, start + 30)
        assert np.array_equal(block.bitmaps, rows[start : start + 30])
        assert block.rows.tolist() == list(range(start, start + 30))
        assert not block.rejects
    assert source.block(0, 30).digest == source.block(0, 30).digest != source.block(1, 31).digest


def test_blocks_and_decoded_batches_need_not_have_the_same_size(tmp_path, noise):
    """A block can have rows of several decoded batches; the source decodes up to 1,024 rows at once.

    The rows are correct whether a block follows the previous block or starts at an earlier row.
    """
    rows = noise(3000)
    parquet.write_table(pa.table({"drawing": COLUMNS["784 bytes"](rows)}), tmp_path / "a.parquet", row_group_size=1500)
    source = ParquetSource("a.parquet", "", ParquetRows(tmp_path / "a.parquet", "a.parquet"))
    for start in (0, 700, 1400, 2100, 300):
        assert np.array_equal(source.block(start, start + 700).bitmaps, rows[start : start + 700])


def test_rows_without_a_drawing_are_rejects(tmp_path, rows):
    """A row without a drawing becomes a reject with a reason; the other rows keep their row numbers and key ids."""
    values = [row.ravel().tolist() for row in rows[:6]]
    values[1], values[2], values[4] = None, values[2][:-1], [256] * 784
    table = pa.table({"drawing": values, "key_id": ["11", "12", "13", "x", "15", "16"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = ParquetSource("a.parquet", "", ParquetRows(tmp_path / "a.parquet", "a.parquet"))
    block = source.block(0, 6)
    assert block.rows.tolist() == [0, 3, 5]
    assert block.key_ids.tolist() == [11, 0, 16]
    assert np.array_equal(block.bitmaps, rows[[0, 3, 5]])
    assert [(reject.row, reject.reason) for reject in block.rejects] == [
        (1, "expected a drawing, got nothing"),
        (2, "expected 784 numbers or 28 x 28, got int64 (783,)"),
        (4, "numbers must be 0 to 255, got 256 to 256"),
    ]


def test_bytes_that_are_neither_bitmap_nor_picture_are_rejects(tmp_path, rows):
    """Bytes with another length than 784 are decoded as a picture; if this fails, the row becomes a reject."""
    parquet.write_table(pa.table({"b": [rows[0].tobytes(), b"cat"]}), tmp_path / "a.parquet")
    block = ParquetSource("a.parquet", "", ParquetRows(tmp_path / "a.parquet", "a.parquet")).block(0, 2)
    assert block.rows.tolist() == [0]
    assert block.rejects[0].row == 1
    assert "expected a picture (PNG, JPEG, WebP, BMP, GIF or TIFF), got b'cat'" in block.rejects[0].reason


@pytest.mark.parametrize("width", [2, 4, 8])
def test_bytes_of_wider_numbers_are_rejects_with_the_conversion(tmp_path, rows, width):
    """A bitmap of int64 or float32 has 784 x 8 or 784 x 4 bytes; its reject names the type to write."""
    parquet.write_table(pa.table({"b": [rows[0].tobytes(), bytes(784 * width)]}), tmp_path / "a.parquet")
    block = ParquetSource("a.parquet", "", ParquetRows(tmp_path / "a.parquet", "a.parquet")).block(0, 2)
    assert block.rows.tolist() == [0]
    (reject,) = block.rejects
    assert reject.row == 1
    assert f"these {784 * width:,} bytes are probably 784 numbers of {width} bytes" in reject.reason
    assert "x.astype(np.uint8).tobytes()" in reject.reason


@pytest.mark.parametrize("nulls", [0, 1])  # a row without a drawing is decoded by another way than a whole column
def test_bytes_of_0_and_1_are_scaled(tmp_path, rows, nulls):
    """`--scale 255` multiplies 784 bytes, as it does the numbers of lists and arrays; larger products are rejects."""
    ink = rows[:5] > 100
    column = [bitmap.astype(np.uint8).tobytes() for bitmap in ink] + [None] * nulls
    parquet.write_table(pa.table({"b": column}), tmp_path / "a.parquet")
    block = ParquetSource("a.parquet", "", ParquetRows(tmp_path / "a.parquet", scale=255)).block(0, 5 + nulls)
    assert np.array_equal(block.bitmaps, ink * np.uint8(255))
    picture = encoded(255 - rows[0])  # which the factor leaves as it is
    parquet.write_table(pa.table({"b": [*column, picture]}), tmp_path / "a.parquet")
    block = ParquetSource("a.parquet", "", ParquetRows(tmp_path / "a.parquet", scale=255)).block(0, 6 + nulls)
    assert np.array_equal(block.bitmaps, [*(ink * np.uint8(255)), decode_image(picture, "a.png")])
    parquet.write_table(pa.table({"b": [*column, rows[0].tobytes()]}), tmp_path / "a.parquet")
    source = ParquetSource("a.parquet", "", ParquetRows(tmp_path / "a.parquet", scale=255))
    assert (
        source.block(5 + nulls, 6 + nulls).rejects[0].reason.startswith("numbers times 255 must be 0 to 255, got 0 to")
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"word": ["cat"]}), "expected a column of drawings .* got word string"),
        (
            pa.table({"a": [bytes(784)], "b": [bytes(784)]}),
            "several columns may have drawings: a, b; leave one in the file; `sketchbatch score` takes --column",
        ),
        (pa.table([[bytes(784)], [bytes(784)]], names=["a", "a"]), "column names must differ, got a twice"),
        (pa.table({"a": [b"cat"], "b": [b"dog"]}), "several columns may have drawings: a, b"),
        (pa.table({"a": [[0.5] * 784]}), r"got a list<.*double>; a: `sketchbatch score` reads .* --scale 255"),
        (pa.table({"a": [[True] * 784]}), r"got a list<.*bool>; a: `sketchbatch score` reads them with --scale 255"),
        (
            pa.table({f"pixel{number}": [0] for number in range(784)}),
            r"got pixel0 int64, .* and 779 more; write the 784 columns of pixels as one \.npy of uint8 \(rows, 784\)$",
        ),
        (None, "a.parquet: cannot be read as Parquet"),
    ],
)
def test_a_file_without_drawings_is_refused(tmp_path, table, message):
    """A Parquet file without drawings is refused with a message that has the file's columns."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut short")
    if table is not None:
        parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(FileRefused, match=message):
        find_sources([str(tmp_path / "a.parquet")], tmp_path, lambda path: None)


@pytest.mark.parametrize(
    "columns",
    [
        {"bitmap": pa.array([], pa.null())},
        {"bitmap": pa.array([], pa.float64()), "key_id": pa.array([], pa.float64())},
        {"word": pa.array([], pa.string())},
        {"a": pa.array([], pa.binary()), "b": pa.array([], pa.binary())},
        {},
    ],
)
def test_a_table_without_rows_has_no_drawing(tmp_path, noise, columns):
    """The columns of an empty data frame have any type, such as null; a column that is named must be there."""
    parquet.write_table(pa.table(columns), tmp_path / "empty.parquet")
    parquet.write_table(pa.table({"bitmap": COLUMNS["bytes"](noise(5))}), tmp_path / "full.parquet")
    empty, full = find_sources([str(tmp_path)], tmp_path, lambda _: None)
    assert (len(empty), len(full)) == (0, 5)
    rows = open_bitmaps(tmp_path / "empty.parquet", skip_malformed=True)
    assert (len(rows), rows[0:5].shape) == (0, (0, 28, 28))
    with pytest.raises(FileRefused, match=r"empty\.parquet: expected drawings, got no row"):
        find_sources([str(tmp_path / "empty.parquet")], tmp_path, lambda _: None)
    for column in columns:
        options = InputOptions(column=column)
        with pytest.raises(FileRefused, match="expected drawings, got no row"):
            find_sources([str(tmp_path / "empty.parquet")], tmp_path, lambda _: None, options)
    with pytest.raises(FileRefused, match=f"expected a column c, got {', '.join(columns) or 'no column'}"):
        find_sources([str(tmp_path / "empty.parquet")], tmp_path, lambda _: None, InputOptions(column="c"))


@pytest.mark.parametrize("other", [[bytes(20)] * 5, [{"bytes": b"thumb", "path": None}] * 5, [[1, 2, 3]] * 5])
def test_the_column_with_drawings_is_found_by_its_rows(tmp_path, noise, other):
    """A digest, a broken thumbnail or a histogram next to the drawings is no drawing."""
    table = pa.table({"a": pa.array(other), "drawing": COLUMNS["bytes"](noise(5))})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert np.array_equal(
        ParquetSource("a", "", ParquetRows(tmp_path / "a.parquet", "a")).block(0, 5).bitmaps, noise(5)
    )


def test_the_column_can_be_named(tmp_path, noise):
    """`--column` decides between two columns of drawings; another name is refused with the names that exist."""
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pa.table({name: COLUMNS["bytes"](noise(rows)[:5]) for name, rows in (("a", 5), ("b", 6))}), path
    )
    [first], [second] = (
        find_sources([str(path)], tmp_path, lambda _: None, InputOptions(column=column)) for column in "ab"
    )
    assert np.array_equal(first.block(0, 5).bitmaps, noise(5))
    assert np.array_equal(second.block(0, 5).bitmaps, noise(6)[:5])
    with pytest.raises(FileRefused, match="expected a column c, got a, b"):
        find_sources([str(path)], tmp_path, lambda _: None, InputOptions(column="c"))
    np.save(tmp_path / "a.npy", noise(5))
    with pytest.raises(FileRefused, match="--column a: no input is a Parquet file"):
        find_sources([str(tmp_path / "a.npy")], tmp_path, lambda _: None, InputOptions(column="a"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"bytes": None, "path": "a.png"}, "the picture a.png is not in the file, only its path: embed the bytes"),
        ([[0] * 28] * 27 + [[0]], "expected 784 numbers or 28 x 28, got lists of different lengths"),
        ([[[1, 2], [3, 4]], [[5], [6]]], "expected pixels, got strokes; write them as .ndjson, a line "),
        ([0] * 783 + [None], "a pixel is missing (null or NaN); leave the row out"),
        ([[[0, 0, 0]] * 28] * 28, "expected 784 numbers or 28 x 28, got int64 (28, 28, 3)"),
    ],
)
def test_a_row_without_a_drawing_has_a_reason_for_people(tmp_path, value, reason):
    """The reason does not have the words of a library."""
    parquet.write_table(pa.table({"drawing": pa.array([value])}), tmp_path / "a.parquet")
    block = ParquetSource("a", "", ParquetRows(tmp_path / "a.parquet", "a")).block(0, 1)
    assert [each.reason[: len(reason)] for each in block.rejects] == [reason]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (pa.array([6.0, None, 7.5, 2.0**53]), [6, 0, 0, 2**53]),
        (pa.array([6, None, -1, 2**62]), [6, 0, 0, 2**62]),
        (pa.array([6, None, 0, 2**64 - 1], pa.uint64()), [6, 0, 0, 2**64 - 1]),
        (pa.array(["6", None, "a-17", "6"]).dictionary_encode(), [6, 0, 0, 6]),
    ],
    ids=["float", "int", "uint", "dictionary"],
)
def test_identifiers_of_every_type_are_kept(tmp_path, noise, keys, expected):
    """A column of integers with a null is float64 in pandas, and 6 becomes 6.0."""
    table = pa.table({"drawing": COLUMNS["bytes"](noise(4)), "key_id": keys})
    parquet.write_table(table, tmp_path / "a.parquet")
    block = ParquetSource("a", "", ParquetRows(tmp_path / "a.parquet", "a")).block(0, 4)
    assert block.key_ids.tolist() == expected


READ_ALL = """
import sys
from pathlib import Path
import pyarrow as pa
from sketchbatch_client.drawings.parquet.rows import ParquetRows
from sketchbatch_client.scoring.inputs.sources import ParquetSource

source = ParquetSource("a", "", ParquetRows(Path(sys.argv[1]), "a"))
for start in range(0, len(source), 1000):
    assert len(source.block(start, start + 1000).rows) == 1000
print(pa.default_memory_pool().max_memory())
"""


def test_a_large_row_group_is_read_in_pieces(tmp_path, noise):
    """Pandas writes a million rows into one row group; the memory to read it does not grow with its size."""
    table = pa.table({"drawing": COLUMNS["784 bytes"](noise(60_000))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=60_000)
    command = [sys.executable, "-c", READ_ALL, tmp_path / "a.parquet"]
    peak_bytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak_bytes < 16e6 < 0.4 * (tmp_path / "a.parquet").stat().st_size


def damaged(contents: bytes, start: int, count: int) -> bytes:
    """Overwrite some bytes, as a failing disk or download does."""
    return contents[:start] + b"\xff" * count + contents[start + count :]


def test_a_damaged_page_is_refused_when_it_is_read(tmp_path, noise):
    """A damaged page is refused in one line with the file's name, and rows of earlier pages can be read."""
    path, rows = tmp_path / "a.parquet", noise(3000)
    parquet.write_table(pa.table({"drawing": COLUMNS["bytes"](rows)}), path, row_group_size=2000, use_dictionary=False)
    page = parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    path.write_bytes(damaged(path.read_bytes(), page, 16))
    source = ParquetSource("a.parquet", "", ParquetRows(path, "a.parquet"))
    assert np.array_equal(source.block(0, 1000).bitmaps, rows[:1000])
    for start in (1000, 2500):  # row 1000 follows the rows that were read; the read of row 2500 skips rows
        with pytest.raises(FileRefused, match=r"^a\.parquet: damaged, cannot be read as Parquet: .+$") as caught:
            source.block(start, start + 100)
        assert "\n" not in str(caught.value)


def test_damaged_key_ids_are_refused(tmp_path, rows):
    """A Parquet file whose key ids are not valid UTF-8 is refused as damaged."""
    keys = pa.array([b"12345", b"\xf3\xf3"]).view(pa.string())
    parquet.write_table(pa.table({"drawing": COLUMNS["bytes"](rows[:2]), "key_id": keys}), tmp_path / "a.parquet")
    with pytest.raises(FileRefused, match=r"a\.parquet: column key_id cannot be decoded"):
        ParquetSource("a.parquet", "", ParquetRows(tmp_path / "a.parquet", "a.parquet")).block(0, 2)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_of_bitmaps_in_an_archive_is_a_source(tmp_path, rows, save):
    """Each array of bitmaps in an .npz archive is a source, whether the archive is compressed or not.

    Other arrays, such as an array of labels, are skipped.
    """
    save(tmp_path / "a.npz", x_train=rows[:200], y_train=np.arange(200), x_test=rows[200:].reshape(-1, 784))
    sources = find_sources([str(tmp_path / "a.npz")], tmp_path, lambda path: None)
    assert [source.name for source in sources] == [f"{tmp_path}/a.npz:{name}" for name in ("x_train", "x_test")]
    assert [len(source) for source in sources] == [200, 100]
    assert np.array_equal(sources[0].block(50, 150).bitmaps, rows[50:150])
    assert np.array_equal(sources[1].block(0, 100).bitmaps, rows[200:])


def npz(method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    """Return the bytes of an .npz archive with the given members, by name and contents."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, contents in members.items():
            archive.writestr(f"{name}.npy", contents)
    return file.getvalue()


def npy(array) -> bytes:
    """Return the bytes that np.save writes."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"<html>", "expected a .npz file, got a web page"),
        (npz(), "expected a .npz file with an array, got a zip archive"),
        (npz(y=npy(np.arange(3))), r"got y.npy int64 \(3,\)"),
        (npz(x=npy(np.zeros((9, 784), np.uint8))[:-1]), "x.npy: truncated: 9 rows of 784 are 7056 bytes, got 7055"),
        (npz(x=npy(np.zeros((9, 784), np.uint8)) + bytes(10**7)), "x.npy: too long"),
        (npz(x=b"cat"), "expected a .npy file"),
        (npz(x=npy(np.zeros((9, 784), np.uint8)))[:200], "cannot be read as a .npz"),
        (damaged(npz(x=npy(np.zeros((9, 784), np.uint8))), 35, 9), "as a .npz: Error -3 while"),
        (npz(zipfile.ZIP_LZMA, x=npy(np.zeros((9, 784), np.uint8))), "x.npy must be stored or deflated, got method 14"),
    ],
)
def test_a_broken_archive_is_refused(tmp_path, contents, message):
    """A broken archive is refused with the reason and, if an array is broken, with the array's name."""
    (tmp_path / "a.npz").write_bytes(contents)
    with pytest.raises(FileRefused, match=message):
        open_npz(tmp_path / "a.npz")
