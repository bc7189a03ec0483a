"""Test that `simplify` turns raw strokes into the simplified strokes that Google published."""

import numpy as np
import pytest
from sketchbatch_client import rasterize
from sketchbatch_client.drawings.simplify import simplify
from sketchbatch_client.drawings.strokes import open_strokes


@pytest.mark.real_drawings
def test_raw_drawings_come_out_as_google_simplified_them(quickdraw):
    """Of 217 raw drawings, 205 give exactly the simplified strokes that Google published.

    On average, the grey levels of the bitmaps of our strokes differ by less than 0.02 from those of Google's strokes.
    """
    is_same, differences = [], []
    for path in sorted((quickdraw / "raw").glob("*.ndjson")):
        published = {drawing.key_id: drawing.strokes for drawing in open_strokes(quickdraw / "simplified" / path.name)}
        for drawing in open_strokes(path):
            if drawing.key_id in published:
                ours, theirs = simplify(drawing.strokes), published[drawing.key_id]
                is_same.append(ours == theirs)
                differences.append(np.abs(rasterize(ours).astype(int) - rasterize(theirs)).mean())
    assert (sum(is_same), len(is_same)) == (205, 217)
    assert np.mean(differences) < 0.02


def test_the_longest_side_spans_the_square():
    """A drawing is moved to the top left corner and scaled so that its longer side is 255.

    Points on the straight line between their neighbours are removed.
    """
    assert simplify([[[100, 150, 200, 200], [50, 50, 50, 90], [0, 5, 9, 20]]]) == [[[0, 255, 255], [0, 0, 102]]]


@pytest.mark.parametrize("dot", [[[3], [4]], [[3, 3], [4, 4]]])
def test_a_dot_becomes_two_points(dot):
    """A dot becomes a stroke of two equal points, as in Google's files, even if the dot is the whole drawing."""
    assert simplify([dot]) == [[[0, 0], [0, 0]]]
    assert simplify([[[3, 258], [4, 4]], dot])[1] == [[0, 0], [0, 0]]
    assert rasterize(simplify([dot])).any()


def test_a_closed_stroke_keeps_its_corners():
    """A closed stroke, which ends at its first point, keeps its corners.

    Simplification measures distances from the line between the first and the last point. For a closed stroke this line
    has no length, so the distances from the first point are measured instead.
    """
    square = [[0, 100, 100, 0, 0], [0, 0, 100, 100, 0]]
    assert simplify([square]) == [[[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]]]
