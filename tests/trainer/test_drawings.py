"""The split: stable, and never the same bitmap on two sides."""

import json

import numpy as np
import pytest
from sketchbatch_client.drawings.rasterize import rasterize
from sketchbatch_client.errors import FileRefused
from sketchbatch_trainer.dataset import Wanted, count_rows, write_bitmaps, write_labelled, write_source
from sketchbatch_trainer.dataset import read_drawings as read_wanted
from sketchbatch_trainer.errors import DrawingsRefused


@pytest.fixture
def folder(tmp_path, noise):
    """Two classes of 200 drawings, half of them copies, some copied into the other class."""
    ant, bee = noise(100), noise(101)[:100]
    write_bitmaps(tmp_path / "ant.npy", np.concatenate([ant, ant]))
    write_bitmaps(tmp_path / "bee.npy", np.concatenate([bee, ant[:50], bee[:50]]))
    return tmp_path


def read_drawings(folder, labels, **more):
    """The three sides of these labels' drawings."""
    return read_wanted(Wanted(folder=folder, labels=labels, **more))


def everything(side):
    """All its bitmaps, in order."""
    return side.take(slice(None))[0]


def rows_of(side):
    """The set of its bitmaps."""
    return {row.tobytes() for row in everything(side)}


def test_no_bitmap_stands_on_two_sides(folder):
    """Copies, also those under another label, follow the bitmap's own hash."""
    drawings = read_drawings(folder, ("ant", "bee"))
    train, validation, test = map(rows_of, (drawings.train, drawings.validation, drawings.test))
    assert train
    assert validation
    assert test
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(drawings.train) + len(drawings.validation) + len(drawings.test) == 400


def test_a_drawings_side_depends_on_nothing_else(folder):
    """Fewer rows, other classes or another order of them move no drawing to another side."""
    whole = read_drawings(folder, ("ant", "bee"))
    part = read_drawings(folder, ("bee", "ant"), rows_per_class=120)
    assert rows_of(part.test) <= rows_of(whole.test)
    assert rows_of(part.train) <= rows_of(whole.train)
    assert part.digest != whole.digest
    assert read_drawings(folder, ("ant", "bee")).digest == whole.digest


def test_labels_follow_the_rows(folder):
    """Class index = place in the labels given; every row keeps its own."""
    ants = rows_of(read_drawings(folder, ("bee", "ant")).train)
    drawings = read_drawings(folder, ("ant", "bee"))
    assert rows_of(drawings.train) == ants
    assert np.bincount(np.concatenate([s.class_index for s in (drawings.train, drawings.validation, drawings.test)]))[
        0
    ] == len(np.load(folder / "ant.npy"))


def test_held_out_drawings_are_written_as_google_does(folder, tmp_path):
    """NAME.npy of uint8 (rows, 784), and where they come from, which reading them again finds."""
    write_source(folder, "synthetic noise")
    drawings = read_drawings(folder, ("ant", "bee"))
    assert drawings.source == "synthetic noise"
    write_labelled(tmp_path / "out", drawings.test, drawings.labels, drawings.source)
    for index, label in enumerate(drawings.labels):
        written = np.load(tmp_path / "out" / f"{label}.npy")
        assert written.dtype == np.uint8
        assert np.array_equal(written, everything(drawings.test)[drawings.test.class_index == index].reshape(-1, 784))
    assert (tmp_path / "out" / "SOURCE.txt").read_text() == "synthetic noise\n"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("ant", "zebra", "yak"), "no drawings of zebra, yak; there are 2 classes there"),
        (("ant", "ant"), "two or more different classes, got ant, ant"),
        (("ant",), "two or more different classes, got ant"),
    ],
)
def test_classes_that_cannot_be_learnt_are_refused(folder, labels, message):
    """The error names them."""
    with pytest.raises(DrawingsRefused, match=message):
        read_drawings(folder, labels)


def test_too_few_drawings_are_refused(folder, noise):
    """A class with nothing to test on says so, with its file."""
    write_bitmaps(folder / "bee.npy", noise(1))
    with pytest.raises(
        DrawingsRefused, match=r"bee\.npy: expected drawings enough for training, validation and test, got 1"
    ):
        read_drawings(folder, ("ant", "bee"))
    (folder / "bee.npy").write_text("<html>")
    with pytest.raises(FileRefused, match="web page"):
        read_drawings(folder, ("ant", "bee"))


def test_synthetic_drawings_cannot_pass_for_real_ones(folder):
    """A source given by hand does not hide the folder's own note."""
    write_source(folder, "synthetic noise")
    with pytest.raises(DrawingsRefused, match="synthetic noise; they cannot pass for Quick, Draw!"):
        read_drawings(folder, ("ant", "bee"), source="Quick, Draw! drawings")


@pytest.mark.real_drawings
def test_real_drawings_split_eight_to_one_to_one(quickdraw):
    """9,000 bears, cats and dogs, in about the shares meant."""
    drawings = read_drawings(quickdraw, ("bear", "cat", "dog"))
    shares = np.array([len(drawings.train), len(drawings.validation), len(drawings.test)]) / 9000
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_bitmaps_stay_in_their_files(folder):
    """What is held of a drawing is its class and its row, 8 bytes; so 50 million of them are 400 MB, not 40 GB."""
    side = read_drawings(folder, ("ant", "bee")).train
    assert all(isinstance(file, np.memmap) for file in side.files)
    assert side.row.nbytes + side.class_index.nbytes == 8 * len(side)


def test_drawings_are_taken_in_the_order_asked_for(folder):
    """Shuffled places give shuffled rows, each with its own class."""
    side = read_drawings(folder, ("ant", "bee")).train
    places = np.random.default_rng(0).permutation(len(side))
    bitmaps, class_index = side.take(places)
    assert np.array_equal(bitmaps, everything(side)[places])
    assert np.array_equal(class_index, side.class_index[places])
    assert np.array_equal(np.concatenate([block for block, _ in side.blocks(7)]), everything(side))


def ndjson(drawings, *, is_recognized=True) -> str:
    """Simplified lines of one stroke each."""
    return "".join(
        json.dumps({"key_id": str(n), "word": "ant", "recognized": is_recognized, "drawing": [[[0, n], [n, 255]]]})
        + "\n"
        for n in range(drawings)
    )


def test_strokes_are_drawn_once_to_train_on(tmp_path):
    """Simplified files in place of bitmaps: drawn into the run, or refused where there is no place for that."""
    (tmp_path / "ant.ndjson").write_text(ndjson(120))
    (tmp_path / "bee.ndjson").write_text("no drawing\n" + ndjson(90, is_recognized=False))
    with pytest.raises(DrawingsRefused, match="no folder to draw these into"):
        read_drawings(tmp_path, ("ant", "bee"))
    with pytest.raises(FileRefused, match=r"bee\.ndjson:1: "):
        read_drawings(tmp_path, ("ant", "bee"), drawn=tmp_path / "drawn")
    drawings = read_drawings(tmp_path, ("ant", "bee"), drawn=tmp_path / "drawn", skip_malformed=True)
    assert len(drawings.train) + len(drawings.validation) + len(drawings.test) == 210
    assert [set(flags) for flags in drawings.recognized] == [{1}, {0}]
    wanted = Wanted(folder=tmp_path, labels=("ant", "bee"), skip_malformed=True)
    assert count_rows(wanted) == 210
    read_drawings(tmp_path, ("ant", "bee"), drawn=tmp_path / "few", skip_malformed=True, rows_per_class=80)
    assert len(np.load(tmp_path / "few" / "ant.npy")) == 80
    assert np.array_equal(drawings.train.files[0][7], rasterize([[[0, 7], [7, 255]]]))


def test_it_is_known_which_drawings_the_game_recognised(folder, tmp_path):
    """Row i of the bitmaps is line i of the simplified file; rows past its end are not known."""
    data = tmp_path / "data"
    for inner in ("numpy_bitmap", "simplified"):
        (data / inner).mkdir(parents=True)
    for label in ("ant", "bee"):
        (folder / f"{label}.npy").rename(data / "numpy_bitmap" / f"{label}.npy")
    (data / "simplified" / "ant.ndjson").write_text(ndjson(50) + ndjson(50, is_recognized=False))
    drawings = read_drawings(data, ("ant", "bee"))
    ants, bees = drawings.recognized
    rows = drawings.test.row[drawings.test.class_index == 0]
    assert ants.tolist() == [1 if row < 50 else 0 if row < 100 else -1 for row in rows]
    assert set(bees) == {-1}
    (data / "simplified" / "ant.ndjson").write_text(ndjson(22) + "no drawing\n" * 78)
    with pytest.raises(FileRefused, match=r"ant\.ndjson:\d+: "):
        read_drawings(data, ("ant", "bee"))
    ants = read_drawings(data, ("ant", "bee"), skip_malformed=True).recognized[0]
    assert ants.tolist() == [1 if row < 22 else -1 for row in rows]
