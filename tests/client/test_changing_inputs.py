"""Test that an input that changes while it is read ends the work with an error, and never with mixed contents."""

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from sketchbatch_client import Client
from sketchbatch_client.drawings.npy import read_bitmaps
from sketchbatch_client.drawings.stable_file import StableFile
from sketchbatch_client.drawings.strokes import open_strokes
from sketchbatch_client.errors import FileChanged, FileRefused, JobRefused, fails_again
from sketchbatch_client.evaluation.labelled import open_labelled
from sketchbatch_client.scoring.inputs import find_sources
from sketchbatch_client.scoring.inputs.sources import Source
from sketchbatch_client.scoring.job import ProgressListener, ScoreJob, write_scores

ROWS = 12


def drawings(seed: int) -> np.ndarray:
    """Return bitmaps with a few pixels of ink."""
    bitmaps = np.zeros((ROWS, 28, 28), np.uint8)
    bitmaps[:, 5:20, 5:9] = np.random.default_rng(seed).integers(128, 256, (ROWS, 15, 4))
    return bitmaps


def lines(seed: int) -> bytes:
    return b"".join(b'{"drawing": [[[0, %d], [0, 255]]]}\n' % (100 + seed) for _ in range(ROWS))


def records(seed: int) -> bytes:
    stroke = struct.pack("<H", 2) + bytes([0, 100 + seed, 0, 255])
    return b"".join(struct.pack("<Q2sbIH", row, b"VE", 1, 0, 1) + stroke for row in range(ROWS))


def write_pictures(path: Path, seed: int) -> None:
    path.mkdir(exist_ok=True)
    for row, bitmap in enumerate(drawings(seed)):
        Image.fromarray(bitmap).save(path / f"{row:02}.png", compress_level=0)  # of equal sizes


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "a.npy": lambda path, seed: np.save(path, drawings(seed)),
    "a.npz": lambda path, seed: np.savez(path, drawings=drawings(seed)),
    "a.ndjson": lambda path, seed: path.write_bytes(lines(seed)),
    "a.bin": lambda path, seed: path.write_bytes(records(seed)),
    "a.parquet": lambda path, seed: parquet.write_table(
        pa.table({"bitmap": [each.tobytes() for each in drawings(seed)]}), path, compression="none"
    ),
    "a": write_pictures,
}


def truncate(path: Path, name: str) -> None:
    os.truncate(path, 100)


def write_anew(path: Path, name: str) -> None:
    """Write other contents of the same size over a file, as `np.save` does."""
    size = path.stat().st_size
    other = path.with_name("other" + path.suffix)
    WRITERS[name](other, 1)
    content = (other / path.name if other.is_dir() else other).read_bytes()
    path.write_bytes(content)
    assert path.stat().st_size == size


def replace(path: Path, name: str) -> None:
    """Rename another file with the same contents over a file."""
    other = path.with_name("copy" + path.suffix)
    other.write_bytes(path.read_bytes())
    other.replace(path)


def remove(path: Path, name: str) -> None:
    path.unlink()


CHANGES = [truncate, write_anew, replace, remove]


def read_rest(source: Source) -> None:
    for start in range(4, ROWS, 4):
        source.block(start, start + 4)


def open_files() -> int:
    """Return how many files this process has open; 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len([*folder.iterdir()]) if folder.is_dir() else 0


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_read_only_while_the_file_is_as_it_was(tmp_path, name, change):
    """The first rows are read before the change; reading more rows raises FileChanged. A repetition may succeed."""
    WRITERS[name](tmp_path / name, 0)
    [source] = find_sources([str(tmp_path / name)], tmp_path, lambda _: None)
    assert len(source.block(0, 4).bitmaps) == 4
    changed = tmp_path / name / "06.png" if name == "a" else tmp_path / name
    change(changed, name)
    with pytest.raises(FileChanged) as caught:
        read_rest(source)
    assert str(caught.value).startswith(f"{changed}: changed while it was read; run the command again")
    assert not fails_again(caught.value)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["a.ndjson", "a.bin", "a"])
def test_a_reader_process_notices_changes_since_the_job_began(tmp_path, name, change):
    """A reader process opens a file later than the job, and compares it with what the job saw."""
    WRITERS[name](tmp_path / name, 0)
    [source] = find_sources([str(tmp_path / name)], tmp_path, lambda _: None)
    copy = pickle.dumps(source)
    assert len(pickle.loads(copy).block(0, 4).bitmaps) == 4
    change(tmp_path / name / "02.png" if name == "a" else tmp_path / name, name)
    with pytest.raises(FileRefused):  # of a file that is missing, the message says so
        pickle.loads(copy).block(0, 4)


def test_the_unpacked_copy_of_an_array_does_not_change(tmp_path):
    """A compressed array is unpacked when it is opened, so its rows stay the same whatever happens to the archive."""
    np.savez_compressed(tmp_path / "a.npz", drawings=drawings(0))
    [source] = find_sources([str(tmp_path / "a.npz")], tmp_path, lambda _: None)
    (tmp_path / "a.npz").write_bytes(b"")
    assert np.array_equal(source.block(0, ROWS).bitmaps, drawings(0))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["a.npy", "a.ndjson", "a.bin"])
def test_the_drawings_of_an_evaluation_do_not_change(tmp_path, name, change):
    """`evaluate` and the trainer read the same files, and stop, too."""
    WRITERS[name](tmp_path / name, 0)
    [rows] = open_labelled(tmp_path, ("a",)).bitmaps.values()
    assert len(rows[:4]) == 4
    change(tmp_path / name, name)
    with pytest.raises(FileChanged):
        rows[4:8]


class ChangingListener(ProgressListener):
    """Write other contents over an input once, after 6,000 of its rows have been scored."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = 0
        self._is_changed = False

    def opens(self, source: str) -> None:
        pass

    def selects(self, model: str, score_kind: str) -> None:
        pass

    def begins(self, rows: int, rows_done: int) -> None:
        pass

    def advances(self, rows: int) -> None:
        self._rows += rows
        if self._rows > 6000 and not self._is_changed:
            content = np.load(self._path)
            content[:, 0] = 255
            np.save(self._path, content)
            self._is_changed = True


def test_a_job_does_not_mix_two_versions_of_an_input(tmp_path, tiny_service, noise):
    """The job stops with one line; the parts of the old contents are not continued with rows of the new contents."""
    np.save(tmp_path / "a.npy", noise(40_000))
    output = tmp_path / "a.csv"
    job = ScoreJob(inputs=[str(tmp_path / "a.npy")], kind="csv", part_rows=2000)
    with Client(tiny_service.address) as client:
        with pytest.raises(FileChanged, match=r"a\.npy: changed while it was read"):
            write_scores(client, job, output, ChangingListener(tmp_path / "a.npy"))
        assert not output.exists()
        with pytest.raises(JobRefused, match=r"the contents of .*a\.npy have changed"):
            write_scores(client, job, output, ChangingListener(tmp_path / "a.npy"))


def test_a_file_is_read_in_windows(tmp_path):
    """Slices across the windows of a large file, and searches, return its bytes; a slice beyond its end is shorter."""
    content = np.random.default_rng(0).integers(32, 127, 1_000_000, np.uint8)
    content[[7, 262_143, 262_144, 700_000]] = ord("\n")
    (tmp_path / "a").write_bytes(content.tobytes())
    file = StableFile(tmp_path / "a")
    ends = [file.find(b"\n", start) for start in (0, 8, 262_144, 262_145, 700_001)]
    assert ends == [7, 262_143, 262_144, 700_000, -1]
    for start, stop in ((0, 5), (262_140, 262_150), (999_990, 1_000_010), (5, 900_000), (2_000_000, 2_000_001)):
        assert file[start:stop] == content.tobytes()[start:stop]


def test_open_files_are_closed(tmp_path):
    """A file is closed with the object that reads it, also if reading it failed."""
    np.save(tmp_path / "a.npy", drawings(0))
    (tmp_path / "b.ndjson").write_bytes(lines(0))
    before = open_files()
    for _ in range(3):
        read_bitmaps(tmp_path / "a.npy")[:]
        open_strokes(tmp_path / "b.ndjson")
        with pytest.raises(FileRefused):
            StableFile(tmp_path / "missing")
    assert open_files() == before
