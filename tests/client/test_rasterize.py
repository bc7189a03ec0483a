"""Strokes to bitmaps, as Google draws them."""

import json

import numpy as np
import pytest
from sketchbatch_client import rasterize


@pytest.mark.real_drawings
def test_real_drawings_come_out_as_google_published_them(quickdraw):
    """Mean |difference| < 0.3 levels over drawings of every kind (line i of the strokes is row i of the bitmaps)."""
    differences = []
    for path in sorted((quickdraw / "simplified").glob("*.ndjson"))[::20]:
        published = np.load(quickdraw / "numpy_bitmap" / f"{path.stem}.npy", mmap_mode="r")
        for row, line in enumerate(path.read_text().splitlines()):
            ours = rasterize(json.loads(line)["drawing"]).astype(int)
            differences.append(np.abs(ours.ravel() - published[row]))
    assert len(differences) > 400
    assert np.mean(differences) < 0.3
    assert np.max(differences) <= 17


def test_a_stroke_is_ink_on_paper_as_wide_as_the_pen():
    """A vertical line down the middle: 16 of 304 units are 1.47 pixels of ink."""
    bitmap = rasterize([[[128, 128], [0, 255]]])
    assert (bitmap.shape, bitmap.dtype) == ((28, 28), np.uint8)
    assert bitmap[14].sum() / 255 == pytest.approx(16 / 304 * 28, abs=0.05)
    assert not bitmap[:, 0].any()


def test_a_single_point_is_a_dot():
    """Round ends make a disc of the pen's width."""
    assert rasterize([[[100], [100]]]).sum() / 255 == pytest.approx(np.pi * (8 / 304 * 28) ** 2, rel=0.05)


def test_strokes_beyond_the_square_are_cut_off():
    """Coordinates outside 0 to 255 do not fail or wrap around."""
    assert rasterize([[[-500, 900], [-500, 900]]]).any()


def test_times_are_ignored():
    """A raw stroke's third list changes nothing."""
    assert np.array_equal(rasterize([[[0, 255], [0, 9]]]), rasterize([[[0, 255], [0, 9], [0, 700]]]))


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ([], "at least one stroke, got none"),
        ([[[], []]], "stroke 0 must have .* got 0 and 0"),
        ([[[1], [1]], [[1, 2], [1]]], "stroke 1 must have as many x as y"),
    ],
)
def test_strokes_that_cannot_be_drawn_are_refused(strokes, message):
    """The error says which stroke and why."""
    with pytest.raises(ValueError, match=message):
        rasterize(strokes)
