"""Test the block reader of a job, which uses reader processes to decode strokes and pictures in advance."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.scoring.block_reader import BLOCK_ROWS, BlockReader, digest_of
from sketchbatch_client.scoring.inputs import find_sources
from sketchbatch_client.scoring.plan import Input, Plan

ROWS = 5 * BLOCK_ROWS


@pytest.fixture(scope="module")
def strokes(tmp_path_factory):
    """Write a file of five blocks of drawings, in which every 1000th line is malformed."""
    path = tmp_path_factory.mktemp("strokes") / "a.ndjson"
    lines = [json.dumps({"key_id": str(row + 1), "drawing": [[[row % 256, 255], [0, 255]]]}) for row in range(ROWS)]
    lines[999::1000] = ["{}"] * len(lines[999::1000])
    path.write_text("\n".join(lines))
    return path


def opened(*inputs, spool=Path("unused"), part_rows=2000):
    """Return the plan and the sources of a job on `inputs`."""
    sources = find_sources([str(each) for each in inputs], spool, lambda path: None)
    listed = tuple(Input(source=source.name, rows=len(source), stamp=source.stamp) for source in sources)
    model = {"model": "m", "version": "1", "model_digest": "d", "labels": ("x", "y")}
    return Plan(inputs=listed, **model, top_k=1, with_all_scores=False, part_rows=part_rows), sources


@pytest.mark.timeout(60)
def test_reader_processes_give_the_batches_of_a_single_process(strokes):
    """A job with two reader processes has the same batches and rejects as a job that decodes in its own process.

    A part that is read a second time has the same part digest as the first time.
    """
    plan, sources = opened(strokes)
    with BlockReader(plan, sources, 0) as alone, BlockReader(plan, sources, 2) as shared:
        batches = list(shared.batches(plan.parts))
        for batch, other in zip(batches, alone.batches(plan.parts), strict=True):
            assert (batch.part, batch.rows) == (other.part, other.rows)
            assert np.array_equal(batch.bitmaps, other.bitmaps)
            for (place, block), (other_place, same) in zip(batch.blocks, other.blocks, strict=True):
                assert place == other_place
                assert np.array_equal(block.rows, same.rows)
                assert block.rejects == same.rejects
        rows = [row for batch in batches for _, block in batch.blocks for row in block.rows.tolist()]
        assert rows == [row for row in range(ROWS) if row % 1000 != 999]
        first = [pair for batch in batches if batch.part == 0 for pair in batch.blocks]
        assert digest_of(first) == alone.digest(0) != alone.digest(1)


def test_small_files_share_batches(tmp_path, noise):
    """Rows of several small files share a batch, so that each batch has about as many rows as one request."""
    for number in range(30):
        np.save(tmp_path / f"{number:02}.npy", noise(100))
    plan, sources = opened(tmp_path)
    with BlockReader(plan, sources, 0) as reader:
        sizes = [(batch.part, len(batch.bitmaps), len(batch.blocks)) for batch in reader.batches(plan.parts)]
    assert sizes == [(0, 1100, 11), (0, 900, 9), (1, 1000, 10)]


KILLED_PARENT = """
import multiprocessing, sys
from pathlib import Path

if __name__ == "__main__":  # the condition is necessary because each reader process imports this file, too
    from sketchbatch_client.drawings.strokes import StrokeFile
    from sketchbatch_client.scoring.block_reader import BlockReader
    from sketchbatch_client.scoring.plan import Input, Plan
    from sketchbatch_client.scoring.inputs.sources import StrokeSource

    source = StrokeSource("a", "", StrokeFile(Path(sys.argv[1])))
    inputs = (Input(source="a", rows=len(source), stamp=""),)
    model = {"model": "m", "version": "1", "model_digest": "d", "labels": ("x", "y")}
    plan = Plan(inputs=inputs, **model, top_k=1, with_all_scores=False, part_rows=1000)
    with BlockReader(plan, [source], 1) as reader:
        next(reader.batches(plan.parts))
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        sys.stdin.read()
"""


@pytest.mark.timeout(60)
def test_readers_end_with_a_parent_that_is_killed(strokes):
    """If the parent process is killed and thus cannot stop its reader process, the reader process ends by itself."""
    program = strokes.parent / "killed_parent.py"
    program.write_text(KILLED_PARENT)
    with subprocess.Popen([sys.executable, program, strokes], stdin=-1, stdout=-1, text=True) as parent:
        (reader,) = map(int, parent.stdout.readline().split())
        process = os.pidfd_open(reader)
        parent.kill()
    has_ended, _, _ = select.select([process], [], [])  # if the reader never ends, the test fails at its time limit
    os.close(process)
    assert has_ended


def test_inputs_are_found(tmp_path, noise):
    """A folder gives its files in the order of their names, but no hidden file and no file of an unknown format.

    A glob with `**` also finds files in nested folders. A file that several inputs match is read only once.
    """
    (tmp_path / "more").mkdir()
    for name in ("b.npy", "a.npy", "more/c.npy", ".hidden.npy"):
        np.save(tmp_path / name, noise(3))
    (tmp_path / "d.ndjson").write_text('{"drawing": [[[0, 255], [0, 255]]]}')
    (tmp_path / "notes.txt").write_text("nothing")

    def names(*inputs):
        return [Path(source.name).name for source in opened(*inputs)[1]]

    assert names(tmp_path) == ["a.npy", "b.npy", "d.ndjson"]
    assert names(tmp_path / "**" / "*.npy") == ["a.npy", "b.npy", "c.npy"]
    assert names(tmp_path / "more", tmp_path / "b.npy", tmp_path / "[ab].npy") == ["c.npy", "b.npy", "a.npy"]
    with pytest.raises(FileRefused, match=r"\*\.bin: no file matches"):
        names(tmp_path / "*.bin")
    with pytest.raises(FileRefused, match=r"none\.npy: cannot be read"):
        names(tmp_path / "none.npy")
