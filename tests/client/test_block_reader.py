"""Strokes and pictures of a job are drawn by other processes, ahead and in order, and those never outlive it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.scoring.block_reader import BLOCK_ROWS, Reading, digest_of
from sketchbatch_client.scoring.inputs import find_sources
from sketchbatch_client.scoring.plan import Input, Plan

ROWS = 5 * BLOCK_ROWS


@pytest.fixture(scope="module")
def strokes(tmp_path_factory):
    """A file of more drawings than are drawn in one process; every 1000th line is none."""
    path = tmp_path_factory.mktemp("strokes") / "a.ndjson"
    lines = [json.dumps({"key_id": str(row + 1), "drawing": [[[row % 256, 255], [0, 255]]]}) for row in range(ROWS)]
    lines[999::1000] = ["{}"] * len(lines[999::1000])
    path.write_text("\n".join(lines))
    return path


def opened(*inputs, spool=Path("unused"), part_rows=2000):
    """The plan and the sources of a job on `inputs`."""
    sources = find_sources([str(each) for each in inputs], spool, lambda path: None)
    listed = tuple(Input(source=source.name, rows=len(source), stamp=source.stamp) for source in sources)
    model = {"model": "m", "version": "1", "model_digest": "d", "labels": ("x", "y")}
    return Plan(inputs=listed, **model, top_k=1, with_all_scores=False, part_rows=part_rows), sources


def test_processes_read_what_one_would(strokes):
    """The same batches in the same order, rejects with them; a part's digest can be had again."""
    plan, sources = opened(strokes)
    with Reading(plan, sources, 0) as alone, Reading(plan, sources, 2) as shared:
        batches = list(shared.batches(plan.parts))
        for batch, other in zip(batches, alone.batches(plan.parts), strict=True):
            assert (batch.part, len(batch.pieces)) == (other.part, len(other.pieces))
            assert np.array_equal(batch.bitmaps, other.bitmaps)
            for piece, same in zip(batch.pieces, other.pieces, strict=True):
                assert np.array_equal(piece.block.rows, same.block.rows)
                assert piece.block.rejects == same.block.rejects
        rows = [row for batch in batches for piece in batch.pieces for row in piece.block.rows.tolist()]
        assert rows == [row for row in range(ROWS) if row % 1000 != 999]
        first = [piece for batch in batches if batch.part == 0 for piece in batch.pieces]
        assert digest_of(first) == alone.digest(0) != alone.digest(1)


def test_small_files_share_requests(tmp_path, noise):
    """A batch has about a request's rows, whatever the files are."""
    for number in range(30):
        np.save(tmp_path / f"{number:02}.npy", noise(100))
    plan, sources = opened(tmp_path)
    with Reading(plan, sources, 0) as reading:
        sizes = [(batch.part, len(batch.bitmaps), len(batch.pieces)) for batch in reading.batches(plan.parts)]
    assert sizes == [(0, 1100, 11), (0, 900, 9), (1, 1000, 10)]


def test_readers_end_with_a_parent_that_is_killed(strokes):
    """Nothing is left of a job that had no time to say goodbye."""
    program = f"""
import multiprocessing
from pathlib import Path
import test_reading
if __name__ == "__main__":
    plan, sources = test_reading.opened(Path({str(strokes)!r}))
    with test_reading.Reading(plan, sources, 2) as reading:
        for batch in reading.batches(plan.parts):
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            input()
"""
    path = strokes.parent / "program.py"
    path.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, path], stdin=-1, stdout=-1, text=True, env=environment)
    readers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.communicate()
    assert readers
    give_up_at = time.monotonic() + 10
    while any(is_running(reader) for reader in readers):
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_inputs_are_found(tmp_path, noise):
    """Files of any kind directly in a folder, in order of their names; globs, folders in folders; nothing twice."""
    (tmp_path / "more").mkdir()
    for name in ("b.npy", "a.npy", "more/c.npy", ".hidden.npy"):
        np.save(tmp_path / name, noise(3))
    (tmp_path / "d.ndjson").write_text('{"drawing": [[[0, 255], [0, 255]]]}')
    (tmp_path / "notes.txt").write_text("nothing")
    names = lambda *inputs: [Path(each.name).name for each in opened(*inputs)[1]]  # noqa: E731
    assert names(tmp_path) == ["a.npy", "b.npy", "d.ndjson"]
    assert names(tmp_path / "**" / "*.npy") == ["a.npy", "b.npy", "c.npy"]
    assert names(tmp_path / "more", tmp_path / "b.npy", tmp_path / "[ab].npy") == ["c.npy", "b.npy", "a.npy"]
    with pytest.raises(FileRefused, match=r"\*\.bin: no file matches"):
        names(tmp_path / "*.bin")
    with pytest.raises(FileRefused, match=r"none\.npy: cannot be read"):
        names(tmp_path / "none.npy")
