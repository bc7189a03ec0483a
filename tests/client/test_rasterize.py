"""Test that `rasterize` renders strokes into the bitmaps that Google published for the same strokes."""

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sketchbatch_client import StrokeWarning, rasterize
from sketchbatch_client.drawings.rasterize import backend, rasterize_all
from sketchbatch_client.drawings.rendering import cairo, coverage
from sketchbatch_client.drawings.rendering.geometry import lay_out
from sketchbatch_client.drawings.simplify import simplify
from sketchbatch_client.drawings.strokes import open_strokes

needs_cairo = pytest.mark.skipif(not cairo.library(), reason="this machine has no libcairo")
PATHS = {"cairo": pytest.param(cairo.draw, marks=needs_cairo), "numpy": coverage.draw}


@pytest.fixture(params=PATHS.values(), ids=PATHS.keys())
def draw(request):
    """Return a function that renders strokes; each test with this fixture runs with cairo and again with NumPy."""
    return lambda strokes: request.param(lay_out(strokes))


@pytest.fixture(scope="session")
def published(quickdraw):
    """Return the strokes of real drawings, and the bitmaps that Google published for them, in the same order."""
    strokes, bitmaps = [], []
    for path in sorted((quickdraw / "simplified").glob("*.ndjson")):
        drawings = [drawing.strokes for drawing in open_strokes(path)]
        strokes += drawings
        bitmaps.append(np.load(quickdraw / "numpy_bitmap" / f"{path.stem}.npy", mmap_mode="r")[: len(drawings)])
    return strokes, np.concatenate(bitmaps).reshape(-1, 28, 28)


@needs_cairo
@pytest.mark.real_drawings
def test_cairo_draws_every_drawing_as_google_published_it(published):
    """The 8,600 bitmaps from cairo are byte-identical to the bitmaps that Google published."""
    strokes, bitmaps = published
    ours = rasterize_all(strokes)
    assert len(ours) == 8600
    assert np.flatnonzero((ours != bitmaps).any(axis=(1, 2))).tolist() == []


@pytest.mark.real_drawings
def test_numpy_comes_close_to_what_google_published(published):
    """On average, the grey levels of bitmaps from NumPy differ by less than 0.3 from those that Google published.

    The test compares every 20th drawing. No grey level differs by more than 18.
    """
    strokes, bitmaps = published
    ours = np.stack([coverage.draw(lay_out(drawing)) for drawing in strokes[::20]])
    differences = np.abs(ours.astype(int) - bitmaps[::20])
    assert differences.mean() < 0.3
    assert differences.max() <= 18


@needs_cairo
def test_threads_render_independently():
    """Four threads that render concurrently produce the same bitmaps as one thread, because they share no canvas."""
    drawings = [[[[0, 255], [0, n]]] for n in range(256)]
    expected = rasterize_all(drawings)
    with ThreadPoolExecutor(4) as pool:
        for bitmaps in pool.map(lambda _: rasterize_all(drawings), range(8)):
            assert np.array_equal(bitmaps, expected)


@needs_cairo
def test_cairo_renders_where_it_is_installed():
    """On a machine with cairo, `rasterize` uses cairo, and `backend` returns cairo's version."""
    assert backend().startswith("cairo 1.")
    strokes = [[[0, 255, 30], [0, 9, 200]]]
    assert np.array_equal(rasterize(strokes), cairo.draw(lay_out(strokes)))


def test_numpy_renders_without_cairo():
    """On a machine without cairo, `rasterize` uses NumPy, and `backend` returns "numpy".

    The test makes libcairo unavailable after the import, so it also shows that the import does not load libcairo.
    """
    program = (
        "import ctypes\n"
        "def refuse(name): raise OSError(name)\n"
        "from sketchbatch_client.drawings.rasterize import backend, rasterize\n"
        "ctypes.PyDLL = refuse\n"
        "print(backend(), rasterize([[[0, 255], [0, 255]]]).any())\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "numpy True\n"


def test_a_stroke_is_ink_on_paper_as_wide_as_the_pen(draw):
    """A vertical line is as wide as the pen: 16 of 304 units of the drawing's square, which is 1.47 of 28 pixels."""
    bitmap = draw([[[128, 128], [0, 255]]])
    assert (bitmap.shape, bitmap.dtype) == ((28, 28), np.uint8)
    assert bitmap[14].sum() / 255 == pytest.approx(16 / 304 * 28, abs=0.05)
    assert not bitmap[:, 0].any()


def test_a_single_point_is_a_dot(draw):
    """A stroke of a single point is rendered as a disc with the width of the pen."""
    assert draw([[[100], [100]]]).sum() / 255 == pytest.approx(np.pi * (8 / 304 * 28) ** 2, rel=0.05)


def test_strokes_beyond_the_square_are_cut_off(draw):
    """Strokes with coordinates outside 0 to 255 are rendered without an error, and only their inner part is visible."""
    assert draw([[[-500, 900], [-500, 900]]]).any()
    assert draw([[[-1e6, 1e6], [-1e6, 1e6]]]).any()


@pytest.mark.parametrize("strokes", [[[[0, 640], [0, 480]]], [[[-9, 246], [0, 9]]], [[[0, 1], [0, 0.5]]]], ids=str)
def test_strokes_in_other_units_cause_a_warning(strokes):
    """Strokes in pixels, with negative coordinates or scaled to 1 cause a warning; `simplify` makes it disappear."""
    with pytest.warns(StrokeWarning, match=r"call simplify\(strokes\) first"):
        rasterize(strokes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rasterize(simplify(strokes))


def test_strokes_may_be_numpy_arrays():
    """Coordinates may be lists or NumPy arrays, even in one drawing, and give the same bitmap."""
    lists = [[[0, 255, 9], [0, 255, 9]], [[7, 200, 90], [100, 25, 9]]]
    mixed = [lists[0], [np.array(lists[1][0]), np.array(lists[1][1])]]
    assert np.array_equal(rasterize(mixed), rasterize(lists))
    assert np.array_equal(rasterize(np.array(lists)), rasterize(lists))


def test_times_are_ignored(draw):
    """The third list of a raw stroke does not change the bitmap."""
    assert np.array_equal(draw([[[0, 255], [0, 9]]]), draw([[[0, 255], [0, 9], [0, 700]]]))


@pytest.mark.parametrize("convert", [rasterize, simplify])
@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ([], "at least one stroke, got none"),
        (np.zeros((0, 2, 3)), "at least one stroke, got none"),
        (
            [[[1, 2], [3, 4]], [[1, 2], [3, 4], [5, 6], [7, 8]]],
            r"stroke 1 .* got 4 points; .* list\(zip\(\*stroke\)\)",
        ),
        ([[(1, 2, 3)] * 5], r"stroke 0 must be \[xs, ys\] or \[xs, ys, ts\], got 5 points; .* list\(zip"),
        ([np.zeros((9, 2))], r"got 9 points; convert with list\(zip"),
        ([[{"x": 1, "y": 2}] * 2], r"got 2 points; convert with \[\[p\['x'\] for p in stroke\], "),
        ([(1, 2), (3, 4)], r"stroke 0 must be \[xs, ys\] or \[xs, ys, ts\], got \(1, 2\); if it is a point, put the"),
        ([{"x": [1, 2], "y": [3, 4]}], r"the keys x, y; convert it with \[stroke\['x'\], stroke\['y'\]\], then call"),
        (
            [{"xs": np.arange(2), "ys": np.arange(2)}],
            r"keys xs, ys; convert it with \[stroke\['xs'\], stroke\['ys'\]\]",
        ),
        ([{"x": 1, "y": 2, "tags": []}], r"the keys x, y, tags; if it is a point"),
        ([np.zeros((9, 1, 2))], r"stroke 0 must be \[xs, ys\] or \[xs, ys, ts\], got 9 entries$"),
        ([{"color": "red", "points": [{"x": 1, "y": 2}]}], r"the keys color, points; take its list stroke\['points'\]"),
        ([[[[1, 2], [3, 4]]] * 2] * 2, r"stroke 0 .* got a list of strokes; call rasterize_all for a list of drawings"),
        ([[[[1, 2], [3, 4]]] * 9], r"got a list of strokes; call rasterize_all"),
        ([{"x": 1, "y": 2}] * 2, r"stroke 0 .* got a dict with the keys x, y; if it is a point, put the points of"),
        (None, "must be a list of strokes, got NoneType"),
        ("[[[1], [2]]]", "must be a list of strokes, got str"),
        ({"drawing": [[[1], [2]]]}, "must be a list of strokes, got dict; pass the value of its key drawing"),
        ([[]], r"stroke 0 must be \[xs, ys\] or \[xs, ys, ts\], got 0 entries"),
        (["ab"], "got 2 entries"),
        ([[["a"], ["b"]]], "points must be numbers"),
        ([[["1"], ["2"]]], "points must be numbers, got str '1'"),
        ([[[True], [False]]], "points must be numbers, got bool True"),
        ([[[1, None], [1, 2]]], "points must be numbers"),
        ([[[1], [1], [1, 2]]], "stroke 0 must have .* got 1 and 1 and 2"),
        ([[[], []]], "stroke 0 must have .* got 0 and 0"),
        ([[[1], [1]], [[1, 2], [1]]], "stroke 1 must have as many x as y"),
        ([[[1, float("nan")], [1, 2]]], "numbers within 1e"),
        ([[[1, 2], [1, -2e6]]], "numbers within 1e"),
    ],
)
def test_strokes_that_cannot_be_drawn_are_refused(strokes, message, convert):
    """Strokes that cannot be drawn are refused with the number of the stroke and the reason.

    Web pages often send a stroke as a list of points; the message then has the expression that converts the stroke.
    """
    with pytest.raises(ValueError, match=message):
        convert(strokes)
