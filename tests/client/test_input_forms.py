"""Test that `score` reads drawings in the forms in which people have them: packed, as .jsonl, in folders of Spark."""

import bz2
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from sketchbatch_client.drawings.npy import read_bitmaps
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.scoring.inputs import InputOptions, find_sources, spooled

LINE = b'{"key_id": "7", "drawing": [[[0, 255], [0, 255]]]}\n'


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


def npy_of(rows: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((rows, 784), np.uint8))
    return file.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstd}


def rows_of(*inputs: object, folder: Path) -> dict[str, int]:
    """Return the number of rows of each source; read each of them."""
    spool = folder / "spool"
    spool.mkdir(exist_ok=True)
    sources = find_sources([str(each) for each in inputs], spool, lambda _: None)
    assert all(len(source.block(0, len(source)).rows) == len(source) for source in sources)
    return {source.name: len(source) for source in sources}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONL", "a.npy", "a.parquet"])
def test_a_packed_file_is_read(tmp_path, noise, packing, name):
    """The file keeps its own name as the source; its copy on disk is not named."""
    plain = tmp_path / name
    if name == "a.npy":
        np.save(plain, noise(3))
    elif name == "a.parquet":
        parquet.write_table(pa.table({"bitmap": [each.tobytes() for each in noise(3)]}), plain)
    else:
        plain.write_bytes(LINE * 3)
    packed = tmp_path / f"{name}{packing}"
    packed.write_bytes(PACKERS[packing](plain.read_bytes()))
    assert rows_of(packed, folder=tmp_path) == {str(packed): 3}


@pytest.mark.parametrize("packing", PACKERS)
def test_a_damaged_packed_file_is_refused(tmp_path, packing):
    """A file that is cut off has no rows, rather than fewer rows without a word."""
    packed = tmp_path / f"a.ndjson{packing}"
    whole = PACKERS[packing](np.random.default_rng(0).bytes(3000).hex().encode())
    cases = {whole[:-9]: "damaged or cut off", b"": "an empty file"}
    if packing != ".zst":  # Arrow writes no checksum
        cases[whole[:900] + bytes(each ^ 255 for each in whole[900:910]) + whole[910:]] = "damaged or cut off"
    for content, reason in cases.items():
        packed.write_bytes(content)
        with pytest.raises(FileRefused, match=f"cannot be unpacked: {reason}; copy or download it again"):
            rows_of(packed, folder=tmp_path)


def test_packed_files_of_names_that_are_not_utf_8_are_kept_apart(tmp_path):
    """Each packed file has its own unpacked copy, also if two names differ only in bytes that are not UTF-8."""
    copies = set()
    for number, name in enumerate((b"\xe8.ndjson.gz", b"\xe9.ndjson.gz"), 1):
        packed = tmp_path / os.fsdecode(name)
        packed.write_bytes(gzip.compress(LINE * number))
        copies.add(spooled.unpack(packed, tmp_path).path)
    assert len(copies) == 2


def test_the_contents_of_a_packed_file_are_checked(tmp_path):
    """An error names the packed file, and not its copy."""
    (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(b"<!DOCTYPE html>"))
    with pytest.raises(
        FileRefused, match=r"a\.ndjson\.gz: expected a drawing in JSON per line, got a web page"
    ) as caught:
        rows_of(tmp_path / "a.ndjson.gz", folder=tmp_path)
    assert "unpacked-" not in str(caught.value)


def test_a_folder_has_each_drawing_once(tmp_path, noise):
    """A packed copy next to its file, metadata in .jsonl, and a folder with the name of a file are no drawings."""
    folder = tmp_path / "in"
    (folder / "b.parquet").mkdir(parents=True)
    (folder / "a.ndjson").write_bytes(LINE * 3)
    (folder / "a.ndjson.gz").write_bytes(gzip.compress(LINE * 3))
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "a.png"}\n')
    assert rows_of(folder, folder=tmp_path) == {f"{folder}/a.ndjson": 3}
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "_b.png", ".c.png"):
        Image.fromarray(np.pad(noise(1)[0, 1:-1, 1:-1], 1)).save(pictures / name)
    (pictures / "metadata.jsonl").write_bytes(b'{"file_name": "a.png"}\n')
    assert rows_of(pictures, folder=tmp_path) == {str(pictures): 1}


def test_labels_are_no_drawings(tmp_path, noise):
    """An array of 784 labels has the shape of one drawing, but lies next to drawings."""
    np.savez(tmp_path / "a.npz", x=noise(784), y=np.zeros(784, np.uint8), mean=np.zeros((28, 28)))
    assert rows_of(tmp_path / "a.npz", folder=tmp_path) == {f"{tmp_path}/a.npz:x": 784}
    np.savez(tmp_path / "b.npz", only=noise(1)[0])
    assert rows_of(tmp_path / "b.npz", folder=tmp_path) == {f"{tmp_path}/b.npz:only": 1}


def test_an_array_with_the_shape_of_drawings_is_not_left_out(tmp_path, noise):
    """Of a .npz, labels are skipped; drawings of a wrong type are refused rather than missing in the output."""
    np.savez(tmp_path / "a.npz", x_train=noise(3), x_test=noise(2)[..., None], y_train=np.zeros(3, np.int64))
    assert rows_of(tmp_path / "a.npz", folder=tmp_path) == {
        f"{tmp_path}/a.npz:x_train": 3,
        f"{tmp_path}/a.npz:x_test": 2,
    }
    np.savez(tmp_path / "b.npz", x_train=noise(3), x_test=noise(2) / np.float32(255))
    with pytest.raises(FileRefused, match=r"b\.npz:x_test\.npy: expected uint8 .*, got float32 .*; convert it"):
        rows_of(tmp_path / "b.npz", folder=tmp_path)


def test_hidden_files_and_outputs_of_jobs_are_no_drawings(tmp_path, noise):
    """Names with "." or "_" in front are hidden, as for Spark; an output in the folder of the inputs is no input."""
    folder = tmp_path / "in"
    for name in ("a.npy", "_b.npy", ".c.npy", "_temporary/0/d.npy", "e/f.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, noise(2))
    (folder / "scores.parquet").write_bytes(b"")
    (folder / "scores.parquet.manifest.json").write_bytes(b"{}")
    (folder / "scores.parquet.rejects.jsonl").write_bytes(b"{}\n")
    assert [*rows_of(folder, folder=tmp_path)] == [f"{folder}/a.npy"]
    assert [*rows_of(f"{folder}/**/*.npy", folder=tmp_path)] == [f"{folder}/a.npy", f"{folder}/e/f.npy"]
    assert [*rows_of(f"{folder}/_*.npy", folder=tmp_path)] == [f"{folder}/_b.npy"]


@pytest.mark.parametrize("suffix", [".npy", ".npz", "compressed", ".parquet"])
@pytest.mark.parametrize("kind", ["float32", ">f4", "float64", "bool", "int64", "uint8"])
def test_numbers_of_any_type_are_read_by_a_scale(tmp_path, noise, suffix, kind):
    """`--scale 255` reads numbers from 0 to 1 and booleans.

    Without it, other types than uint8 are refused, and the message names the option.
    """
    bitmaps = noise(5)
    is_whole = kind in ("bool", "int64", "uint8")
    numbers = bitmaps > 127 if is_whole else bitmaps / 255
    numbers = numbers.astype(kind)
    path = tmp_path / f"a{suffix.replace('compressed', '.npz')}"
    if suffix == ".parquet":
        if kind == ">f4":
            pytest.skip("Parquet has one byte order")
        parquet.write_table(pa.table({"x": numbers.reshape(5, 784).tolist()}), path)
    else:
        save = {".npy": np.save, ".npz": np.savez, "compressed": np.savez_compressed}[suffix]
        save(path, numbers)
    expected = np.where(bitmaps > 127, 255, 0) if is_whole else bitmaps
    [source] = find_sources([str(path)], tmp_path, lambda _: None, InputOptions(scale=255))
    assert np.array_equal(source.block(0, 5).bitmaps, expected)
    assert np.array_equal(source.block(3, 5).bitmaps, expected[3:])
    if kind == "uint8" or (kind, suffix) == ("int64", ".parquet"):
        [source] = find_sources([str(path)], tmp_path, lambda _: None)
        assert np.array_equal(source.block(0, 5).bitmaps, bitmaps > 127)
        return
    remedy = r"x\.astype\(np\.uint8\)" if kind == "int64" else "--scale 255"
    with pytest.raises(FileRefused, match=remedy):
        find_sources([str(path)], tmp_path, lambda _: None)


def test_an_array_of_objects_is_refused_with_the_remedy(tmp_path, noise):
    """No scale makes numbers of objects, so the remedy is to stack them."""
    x = np.empty(5, object)
    x[:] = list(noise(5).reshape(5, 784).astype(object))
    objects = np.stack(x)
    np.save(tmp_path / "a.npy", objects)
    for scale in (0, 1):
        with pytest.raises(
            FileRefused, match=r"got object \(5, 784\); convert it: np\.stack\(x\)\.astype\(np\.uint8\) "
        ):
            read_bitmaps(tmp_path / "a.npy", scale=scale)
    assert np.array_equal(np.stack(x).astype(np.uint8).reshape(-1, 28, 28), noise(5))


def test_a_row_with_a_missing_pixel_is_a_reject(tmp_path):
    """A row of floats with NaN, or of a list with null, has no value for a pixel; the other rows are scored."""
    numbers = np.linspace(0, 1, 5 * 784, dtype=np.float32).reshape(5, 784)
    numbers[3, 7] = np.nan
    np.save(tmp_path / "a.npy", numbers)
    parquet.write_table(pa.table({"x": numbers.tolist()}), tmp_path / "b.parquet")
    rows = numbers.tolist()
    rows[3][7] = None
    parquet.write_table(pa.table({"x": rows}), tmp_path / "c.parquet")
    sources = find_sources([str(tmp_path)], tmp_path, lambda _: None, InputOptions(scale=255))
    for source in sources:
        block = source.block(0, 5)
        assert block.rows.tolist() == [0, 1, 2, 4]
        assert np.array_equal(block.bitmaps.reshape(4, 784), np.rint(255 * numbers[[0, 1, 2, 4]].astype(np.float64)))
        [reject] = block.rejects
        assert (reject.row, reject.reason.partition(";")[0]) == (3, "a pixel is missing (null or NaN)")
        assert source.digest(0, 5) == block.digest != source.digest(0, 3)


@pytest.mark.parametrize("value", [1.01, -0.1, np.inf])
def test_a_number_out_of_range_is_no_drawing(tmp_path, value):
    """Numbers times the scale must be 0 to 255: a wrong scale is an error, rather than a wrapped number."""
    numbers = np.zeros((5, 784), np.float32)
    numbers[3, 7] = value
    np.save(tmp_path / "a.npy", numbers)
    parquet.write_table(pa.table({"x": numbers.tolist()}), tmp_path / "a.parquet")
    options = InputOptions(scale=255)
    [array, table] = find_sources([str(tmp_path)], tmp_path, lambda _: None, options)
    assert len(array.block(0, 3).bitmaps) == 3
    with pytest.raises(FileRefused, match=r"a\.npy: numbers times 255 must be 0 to 255, got .*; score inputs with"):
        array.block(0, 5)
    block = table.block(0, 5)
    assert [(reject.row, "must be 0 to 255" in reject.reason) for reject in block.rejects] == [(3, True)]
    assert list(block.rows) == [0, 1, 2, 4]


@pytest.mark.parametrize("shape", [(784,), (28, 28), (28, 28, 1), (1, 28, 28)])
@pytest.mark.parametrize("kind", ["uint8", "float64"])
def test_arrays_in_fortran_order_are_read(tmp_path, noise, shape, kind):
    """The same array in Fortran order has the same drawings."""
    bitmaps = noise(50)
    numbers = bitmaps if kind == "uint8" else bitmaps / 255
    np.save(tmp_path / "a.npy", np.asfortranarray(numbers.reshape(50, *shape)))
    opened = read_bitmaps(tmp_path / "a.npy", scale=0 if kind == "uint8" else 255)
    for rows in (slice(0, 50), slice(7, 9), slice(0, 50, 3), np.array([9, 3, 3]), slice(0, 0)):
        assert np.array_equal(opened[rows], bitmaps[rows])
    assert np.array_equal(opened.head(7)[:], bitmaps[:7])


def test_a_packed_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    """A file of a few bytes must not fill the disk; the partial copy is removed."""
    monkeypatch.setattr(spooled, "_MAX_BYTES", 1 << 20)
    (tmp_path / "a.ndjson.gz").write_bytes(gzip.compress(bytes(30 << 20)))
    spool = tmp_path / "spool"
    spool.mkdir()
    with pytest.raises(FileRefused, match=r"must unpack to at most [0-9,]+ bytes, got more; unpack it first"):
        find_sources([str(tmp_path / "a.ndjson.gz")], spool, lambda _: None)
    assert not list(spool.iterdir())


def test_spark_folders_are_searched_in_all_folders(tmp_path, noise):
    """A folder without drawings of its own stands for those in the folders below it, without hidden ones."""
    root = tmp_path / "out"
    for inner in ("label=cat", "label=dog/year=2026", "_temporary/0"):
        (root / inner).mkdir(parents=True)
        parquet.write_table(pa.table({"x": [bytes(784)] * 2}), root / inner / "part-0.parquet")
    (root / "_SUCCESS").touch()
    read = rows_of(root, folder=tmp_path)
    assert read == {
        f"{root}/label=cat/part-0.parquet": 2,
        f"{root}/label=dog/year=2026/part-0.parquet": 2,
    }


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.npy", {"a.npy"}),
        ("_*.npy", {"_q.npy"}),
        ("[_a]*.npy", {"_q.npy", "a.npy"}),
        ("[!_]*.npy", {"a.npy"}),
        ("**/*.npy", {"a.npy", "b/c.npy"}),
        ("**/_*.npy", {"_q.npy", "b/_d.npy"}),
    ],
)
def test_hidden_names_need_a_pattern_that_names_them(tmp_path, noise, pattern, found):
    """Names with `_` in front match only a pattern whose name begins with `_`; folders before it do not count."""
    root = tmp_path / "_in"
    for name in ("a.npy", "_q.npy", "b/c.npy", "b/_d.npy", "_e/f.npy"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, noise(1))
    expected = {str(root / name): 1 for name in found}
    assert rows_of(root / pattern, folder=tmp_path) == expected


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "content",
    [
        (LINE * 3).replace(b"\n", b"\r\n"),
        (LINE * 3)[:-1],
        BOM + LINE * 3,
        BOM + LINE + BOM + LINE * 2,
        BOM + (LINE * 3).replace(b"\n", b"\r\n\r\n"),
    ],
    ids=["CRLF", "no last line feed", "mark", "joined files with marks", "everything"],
)
@pytest.mark.parametrize("is_piped", [False, True], ids=["file", "standard input"])
def test_lines_of_every_editor_are_read(tmp_path, monkeypatch, content, is_piped):
    """CRLF, byte order marks, blank lines and a missing last line feed cost no drawing, in a file or from a pipe."""
    (tmp_path / "a.ndjson").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    assert [*rows_of("-" if is_piped else tmp_path / "a.ndjson", folder=tmp_path).values()] == [3]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("is_piped", [False, True], ids=["file", "standard input"])
def test_text_in_utf_16_is_refused_as_a_whole(tmp_path, monkeypatch, encoding, is_piped):
    """PowerShell writes UTF-16. Without a byte order mark, the first line alone could be read."""
    content = (LINE * 3).decode().encode(encoding)
    (tmp_path / "a.ndjson").write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    with pytest.raises(FileRefused, match="got text in UTF-16; convert it to UTF-8"):
        rows_of("-" if is_piped else tmp_path / "a.ndjson", folder=tmp_path)


@pytest.mark.parametrize("content", [LINE * 3, npy_of(3)])
def test_an_open_pipe_is_read_as_a_stream(tmp_path, content):
    """A shell passes `<(command)` as the name of an open pipe, /dev/fd/63."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"):
        os.write(writing, content)
        os.close(writing)
        assert rows_of(f"/dev/fd/{reading}", folder=tmp_path) == {f"/dev/fd/{reading}": 3}


def test_an_open_pipe_of_something_else_is_refused(tmp_path):
    """The message names the pipe."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"):
        os.write(writing, b"notes")
        os.close(writing)
        with pytest.raises(FileRefused, match=rf"/dev/fd/{reading}: expected .npy, .npz, .ndjson or .parquet, got"):
            rows_of(f"/dev/fd/{reading}", folder=tmp_path)
