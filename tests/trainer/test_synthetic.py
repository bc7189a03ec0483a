"""The built-in sketches: repeatable, varied, drawn as Google draws."""

import numpy as np
import pytest
from sketchbatch_trainer.synthetic import LABELS, draw


@pytest.mark.parametrize("label", LABELS)
def test_sketches_are_varied_and_repeatable(label):
    """Same seed, same sketches; no two alike; ink on paper in every one."""
    bitmaps = draw(label, 30, seed=1)
    assert (bitmaps.shape, bitmaps.dtype) == ((30, 28, 28), np.uint8)
    assert np.array_equal(bitmaps, draw(label, 30, seed=1))
    assert not np.array_equal(bitmaps, draw(label, 30, seed=2))
    assert len({bitmap.tobytes() for bitmap in bitmaps}) == 30
    ink = bitmaps.mean(axis=(1, 2)) / 255
    assert (ink > 0.05).all()
    assert (ink < 0.6).all()


def test_the_command_writes_a_folder_that_says_synthetic(run_command, tmp_path):
    """In Google's layout, ready to train on, never to be taken for real drawings."""
    finished = run_command("sketchbatch-train", "sketch", "--folder", tmp_path, "--rows", 3)
    assert finished.returncode == 0, finished.stderr
    assert "synthetic" in finished.stdout
    assert (tmp_path / "SOURCE.txt").read_text().startswith("synthetic sketches")
    assert np.load(tmp_path / "bear.npy").shape == (3, 784)
