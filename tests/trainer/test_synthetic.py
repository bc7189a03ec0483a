"""Test that synthetic sketches are repeatable and varied, and are written in the layout of Google's files."""

import numpy as np
import pytest
from sketchbatch_trainer.cli import app
from sketchbatch_trainer.synthetic import LABELS, draw
from typer.testing import CliRunner


@pytest.mark.parametrize("label", LABELS)
def test_sketches_are_varied_and_repeatable(label):
    """Equal seeds give equal sketches; all sketches differ and have a plausible share of ink."""
    bitmaps = draw(label, 30, seed=1)
    assert (bitmaps.shape, bitmaps.dtype) == ((30, 28, 28), np.uint8)
    assert np.array_equal(bitmaps, draw(label, 30, seed=1))
    assert not np.array_equal(bitmaps, draw(label, 30, seed=2))
    assert len({bitmap.tobytes() for bitmap in bitmaps}) == 30
    ink = bitmaps.mean(axis=(1, 2)) / 255
    assert (ink > 0.05).all()
    assert (ink < 0.6).all()


def test_the_command_writes_a_folder_marked_as_synthetic(tmp_path):
    """The command `sketch` writes files in Google's layout, and a note that the drawings are synthetic."""
    result = CliRunner().invoke(app, ["sketch", "--folder", str(tmp_path), "--rows", "3"])
    assert result.exit_code == 0, result.output
    assert "synthetic" in result.output
    assert (tmp_path / "SOURCE.txt").read_text().startswith("synthetic sketches")
    assert np.load(tmp_path / "bear.npy").shape == (3, 784)


@pytest.mark.parametrize("name", ["bear.npy", "owl.png", "owl/1.png", "SOURCE.txt"])
def test_sketches_do_not_replace_other_drawings(tmp_path, name):
    """A folder with drawings or with a note of another origin is refused, and stays as it is."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("by a person")
    refused = CliRunner().invoke(app, ["sketch", "--folder", str(tmp_path), "--rows", "3"])
    assert "holds drawings that are not synthetic; name another folder" in str(refused.exception)
    files = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {name: "by a person"}
