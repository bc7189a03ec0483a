"""Arrays, lists and series are converted to bitmaps; other objects are refused with the expression that converts them.

The example of client/README.md tests series of pandas.
"""

import asyncio
import io
import re
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from sketchbatch_client import AsyncClient, Client, InkWarning, RequestRefused
from sketchbatch_client.drawings.bitmap_arrays import as_bitmaps, index_of, ink_warning
from sketchbatch_client.drawings.readers import open_bitmaps, read_bitmaps
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.rpc.request import as_rows

ROWS = np.random.default_rng(1).integers(0, 150, (3, 28, 28), np.uint8)


def png(bitmap):
    """Return a bitmap as the contents of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(bitmap).save(file, "png")
    return file.getvalue()


class Series:
    """Entries with an index, as in pandas; series of polars have `to_numpy` only."""

    def __init__(self, entries, index=None):
        self._entries = np.empty(len(entries), object)
        self._entries[:] = list(entries)
        if index is not None:
            self.index = np.array(list(index))

    def to_numpy(self):
        return self._entries

    def map(self, convert):
        return Series([convert(entry) for entry in self._entries], self.index)


@pytest.mark.parametrize(
    "convert",
    [
        lambda rows: rows.reshape(3, 784),
        lambda rows: rows[..., None],
        lambda rows: rows[:, None],
        lambda rows: np.asfortranarray(rows),
        lambda rows: rows.astype(">i2"),
        lambda rows: rows.astype(np.uint64),
        lambda rows: rows.tolist(),
        lambda rows: rows.reshape(3, 784).tolist(),
        lambda rows: [rows[0], rows[1].reshape(784).astype(np.int64), rows[2][..., None]],
        lambda rows: tuple(row.tobytes() for row in rows),
        lambda rows: Series(rows.reshape(3, 784)),
        lambda rows: Series([rows[0].tobytes(), rows[1].tolist(), bytearray(rows[2])]),
        lambda rows: Series([Series(list(row)).to_numpy() for row in rows]),
        lambda rows: rows.reshape(3, 784).astype(object),
    ],
)
def test_every_form_of_bitmaps_is_accepted(convert):
    """Rows of each accepted shape and type of integer give the same bitmaps."""
    bitmaps = as_bitmaps(convert(ROWS))
    assert bitmaps.dtype == np.uint8
    assert np.array_equal(bitmaps, ROWS)


class Frame(Series):
    """A data frame: rows and named columns."""

    columns = ("label", "bitmap")


@pytest.mark.parametrize("frame", [Frame([["cat", ROWS[0]]]), Frame([[ROWS[0]]]), Frame(np.zeros((2, 785)).tolist())])
def test_a_data_frame_of_other_columns_is_refused(frame):
    """A data frame is refused with the shape that it has and the columns that are expected."""
    with pytest.raises(ValueError, match=r"got a data frame \(.*\); choose one column, as in x\['bitmap'\], or"):
        as_bitmaps(frame)


@pytest.mark.parametrize("entries", [list, Series], ids=["list", "series"])
def test_encoded_pictures_are_refused_with_the_function_that_decodes_them(entries):
    """The bytes of a PNG file are named as such; other bytes are described by their number."""
    with pytest.raises(ValueError, match=r"got a PNG picture in row 0; convert each with .*images\.decode_image"):
        as_bitmaps(entries([png(ROWS[0])] * 2))
    with pytest.raises(ValueError, match=r"got uint8 \(3,\) in row 0"):
        as_bitmaps(entries([b"abc"]))


@pytest.mark.parametrize("shape", [(28, 28), (784,), (28, 28, 1), (1, 28, 28), (1, 28, 28, 1), (1, 784)])
def test_one_bitmap_is_one_row(shape):
    """One bitmap of each shape of a row becomes an array of one row."""
    for one in (ROWS[0].reshape(shape), ROWS[0].reshape(shape).tolist(), ROWS[0].tobytes()):
        assert np.array_equal(as_bitmaps(one), ROWS[:1])


def test_a_uint8_array_is_not_copied():
    """A bulk call of a uint8 array copies no rows before it sends them."""
    assert np.shares_memory(as_bitmaps(ROWS.reshape(3, 784)), ROWS)


def test_the_usual_array_needs_few_checks():
    """A uint8 array (rows, 28, 28) with ink passes in 7 calls; with 33, callers of one row had half of the rate."""
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    row = ROWS[:1].copy()
    row[0, 14, 14] = 255
    sys.setprofile(count)
    try:
        as_rows(row)
    finally:
        sys.setprofile(None)
    assert calls <= 10


@pytest.mark.parametrize(
    "x",
    [
        ROWS > 100,
        ROWS / 255,
        ROWS.astype(np.float32),
        ROWS / 127.5 - 1,
        (ROWS / 255).tolist(),
        Series(list(ROWS / 255)),
        Series(list(ROWS / 255), "abc"),
        Series((ROWS / 255).tolist(), "abc"),
    ],
    ids=["bool", "0..1", "0..255", "-1..1", "list", "series", "series with an index", "series of lists"],
)
def test_floats_and_bools_are_refused_with_the_expression_that_converts_them(x):
    """The expression of the message gives bitmaps; the values decide which expression it is."""
    with pytest.raises(ValueError, match="; convert with ") as caught:
        as_bitmaps(x)
    if isinstance(x, Series) and not hasattr(x, "index"):
        x = x.to_numpy()
    converted = eval(str(caught.value).partition("convert with ")[2], {"np": np, "x": x})
    is_bool = isinstance(x, np.ndarray) and x.dtype == bool
    assert np.array_equal(as_bitmaps(converted), 255 * x if is_bool else ROWS)
    if isinstance(x, Series):
        assert index_of(converted, 3).tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan")])
def test_a_missing_value_of_a_series_is_named(missing):
    """A missing value of pandas is NaN or None."""
    with pytest.raises(ValueError, match="got a missing value in row 1; leave such rows out"):
        as_bitmaps(Series([ROWS[0], missing, ROWS[2]]))


@pytest.mark.parametrize("rows_first", ["x.transpose(2, 0, 1)", "x.T"])
def test_an_array_whose_rows_are_its_last_axis_is_refused_with_the_remedy(rows_first, tmp_path):
    """The remedy puts the rows first, for an array as for a file."""
    rows = np.concatenate([ROWS, ROWS[:2]])
    x = rows.transpose(1, 2, 0) if "transpose" in rows_first else rows.reshape(5, 784).T
    np.save(tmp_path / "a.npy", np.ascontiguousarray(x))
    for read in (lambda: as_bitmaps(x), lambda: read_bitmaps(tmp_path / "a.npy")):
        with pytest.raises((ValueError, FileRefused), match=re.escape(f"; convert it: {rows_first}")):
            read()
    assert np.array_equal(as_bitmaps(eval(rows_first)), rows)


@pytest.mark.parametrize(
    ("channels", "ink"), [(3, r"255 - x[..., 0]; of 3 bitmaps"), (4, r"x[..., 3] with transparent")]
)
def test_a_picture_in_colour_is_refused_with_the_remedy(channels, ink, tmp_path):
    """Its channels are no bitmaps: the canvas of a web page has red, green, blue and alpha."""
    x = np.zeros((28, 28, channels), np.uint8)
    np.save(tmp_path / "a.npy", x)
    for read in (lambda: as_bitmaps(x), lambda: read_bitmaps(tmp_path / "a.npy")):
        with pytest.raises(
            (ValueError, FileRefused),
            match=re.escape(f"; of a picture in colour, with values from 0 to 255, pass the ink: {ink}"),
        ):
            read()


def test_a_remedy_for_all_rows_fits_all_rows():
    """The values of all rows choose the expression; a row of another type than the others is converted alone."""
    blank = Series([np.zeros((28, 28)), *ROWS.astype(float)], range(4))
    with pytest.raises(ValueError, match=r"x\.map\(lambda row: np\.asarray\(row\)\.round\(\)\.astype\(np\.uint8\)\)$"):
        as_bitmaps(blank)
    mixed = Series([ROWS[0], ROWS[1] / 255, ROWS[2]], range(3))
    with pytest.raises(ValueError, match="in row 1; the rows have several types, so convert this row alone") as error:
        as_bitmaps(mixed)
    expression = str(error.value).rpartition("with ")[2]
    assert np.array_equal(eval(expression, {"np": np, "row": mixed.to_numpy()[1]}), ROWS[1])
    missing = ROWS[1] / 255
    missing[3, 3] = np.nan
    with pytest.raises(ValueError, match=r"in row 0 with missing values \(NaN\); leave such rows out$"):
        as_bitmaps(Series([ROWS[0] / 255, missing], range(2)))


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (ROWS.astype(int) - 1, "integers from 0 to 255, got -1 to 148"),
        (Series([ROWS[0], 2 * ROWS[1].astype(int)]), "integers from 0 to 255, got 0 to 298 in row 1"),
        (ROWS / 0.1, "with values from 0 to 1490"),
        (ROWS[:, :27], r"got uint8 \(3, 27, 28\)"),
        ([ROWS[0], ROWS[1, :27]], r"got uint8 \(27, 28\) in row 1"),
        (Series([ROWS[0], None]), "got a missing value in row 1; leave such rows out"),
        (Series([ROWS[0] / 255, None], range(2)), "got a missing value in row 1; leave such rows out"),
        (Series([ROWS[0], [None] * 784]), "got pixels with a missing value in row 1; leave such rows out"),
        (
            np.where(ROWS > 140, np.nan, ROWS),
            r"got float64 \(3, 28, 28\) with missing values \(NaN\); leave such rows out",
        ),
        ([bytes(784), bytes(783)], r"got uint8 \(783,\) in row 1"),
        (
            [bytes(784), bytes(6272)],
            r"got bytes in row 1; these 6,272 bytes are .* 784 numbers of 8 bytes: .*",
        ),
        (iter(ROWS), "got generator|got iterator"),
        ([["a"]], r"got <U1 \(1, 1\)"),
    ],
)
def test_other_values_and_shapes_are_refused(x, got):
    """The message has the range of the values, or the type and shape, and the row of a list or series."""
    with pytest.raises(ValueError, match=f"^bitmaps must be .*{got}$"):
        as_bitmaps(x)


def test_results_have_the_index_of_the_series(tiny_service):
    """`classify` and each result of `score` have the index entries of their rows; other results have no index."""
    with Client(tiny_service.address, rows_per_request=2) as client:
        expected = client.classify(ROWS)
        assert expected.index is None
        named = client.classify(Series(list(ROWS), "abc"))
        parts = list(client.score(Series(list(ROWS), "abc")))
        batches = list(client.score([Series(list(ROWS[:1]), "a"), ROWS[1:]]))
    assert np.array_equal(named.scores, expected.scores)
    assert named.index.tolist() == ["a", "b", "c"]
    assert [part.index.tolist() for part in parts] == [["a", "b"], ["c"]]
    assert [None if part.index is None else part.index.tolist() for part in batches] == [["a"], None]


async def test_tasks_classify_series(tiny_service):
    """`AsyncClient` accepts the same objects as `Client`."""
    async with AsyncClient(tiny_service.address, rows_per_request=2) as client:
        named, listed = await asyncio.gather(client.classify(Series(ROWS.tolist(), "abc")), client.classify([ROWS[0]]))
        parts = [part async for part in client.score(ROWS)]
    assert named.index.tolist() == ["a", "b", "c"]
    assert [len(listed), *map(len, parts)] == [1, 2, 1]


def test_invalid_drawings_are_refused_by_the_client():
    """`classify` and `score` raise RequestRefused, in one line, before they send a request of the batch."""
    with Client("localhost:1") as client, pytest.raises(RequestRefused, match="convert with"):
        client.classify(Series([ROWS[0] / 255]))


def test_bitmaps_that_look_inverted_cause_one_warning(tiny_service):
    """Inverted bitmaps cause a warning with the expression that inverts them; it is shown once."""
    with Client(tiny_service.address) as client, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            client.classify(255 - ROWS // 3)
            list(client.score([255 - ROWS // 3]))
        client.classify(ROWS)
    assert [each.category for each in caught] == [InkWarning]
    assert re.search(r"inverted\? .*255 - x", str(caught[0].message))


@pytest.mark.parametrize("bitmaps", [ROWS[:0], ROWS, np.full_like(ROWS, 128), ROWS * 0, ROWS * 0 + 1], ids=len)
def test_drawings_cause_no_warning(bitmaps):
    """Blank, dark and grey bitmaps do not look inverted."""
    assert ink_warning(bitmaps) == ""


def test_bitmaps_of_zeros_and_ones_cause_a_warning(tiny_service):
    """Bitmaps whose ink has level 1 are nearly blank; a blank bitmap before them does not hide them."""
    faint = np.concatenate([ROWS[:1] * 0, ROWS > 99]).astype(np.uint8)
    with Client(tiny_service.address) as client, pytest.warns(InkWarning, match="only the values 0 and 1"):
        client.classify(faint)


@pytest.mark.real_drawings
def test_no_real_drawing_looks_inverted(quickdraw):
    """No published drawing causes the warning, and nearly every inverted drawing does, even one alone."""
    inverted, rows = 0, 0
    for path in sorted((quickdraw / "numpy_bitmap").glob("*.npy"))[::20]:
        for row in range(100):
            bitmap = open_bitmaps(path)[row : row + 1]
            assert not ink_warning(bitmap)
            inverted += bool(ink_warning(255 - bitmap))
            rows += 1
    assert inverted > 0.98 * rows
