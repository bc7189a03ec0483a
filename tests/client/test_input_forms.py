"""Test that `score` reads drawings in the forms in which people have them: packed, as .jsonl, in folders of Spark."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.scoring.inputs import find_sources

LINE = b'{"key_id": "7", "drawing": [[[0, 255], [0, 255]]]}\n'


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


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
        with pytest.raises(FileRefused, match=f"cannot be unpacked: {reason}; fetch it again"):
            rows_of(packed, folder=tmp_path)


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
