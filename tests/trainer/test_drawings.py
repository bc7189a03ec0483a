"""Test that the splits of a dataset are stable, and that no bitmap is in two splits."""

import json

import numpy as np
import pytest
from sketchbatch_client.drawings.rasterize import rasterize
from sketchbatch_client.drawings.readers import BitmapFile
from sketchbatch_client.errors import FileRefused
from sketchbatch_trainer.dataset import (
    DatasetRequest,
    count_rows,
    read_dataset,
    write_bitmaps,
    write_source,
    write_split,
)
from sketchbatch_trainer.errors import DrawingsRefused


@pytest.fixture
def folder(tmp_path, noise):
    """Write two classes of 200 rows each; 100 rows of a class are different bitmaps, and the others are copies.

    The copies in the class `bee` include 50 bitmaps of the class `ant`.
    """
    ant, bee = noise(100), noise(101)[:100]
    write_bitmaps(tmp_path / "ant.npy", np.concatenate([ant, ant]))
    write_bitmaps(tmp_path / "bee.npy", np.concatenate([bee, ant[:50], bee[:50]]))
    return tmp_path


def read(folder, labels, **options):
    """Return the dataset of the given labels in a folder."""
    return read_dataset(DatasetRequest(folder=folder, labels=labels, **options))


def bitmaps_of(split):
    """Return all bitmaps of a split, in order."""
    return split.take(slice(None))[0]


def rows_of(split):
    """Return the bitmaps of a split, each as bytes, in a set without duplicates."""
    return {row.tobytes() for row in bitmaps_of(split)}


def test_no_bitmap_is_in_two_splits(folder):
    """All copies of a bitmap are in the same split, even copies with another label."""
    drawings = read(folder, ("ant", "bee"))
    train, validation, test = map(rows_of, (drawings.train, drawings.validation, drawings.test))
    assert train
    assert validation
    assert test
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(drawings.train) + len(drawings.validation) + len(drawings.test) == 400


def test_the_split_of_a_drawing_depends_on_its_bitmap_alone(folder):
    """The split of a drawing does not depend on the number of rows that are read, or on the order of the classes."""
    whole = read(folder, ("ant", "bee"))
    part = read(folder, ("bee", "ant"), rows_per_class=120)
    assert rows_of(part.test) <= rows_of(whole.test)
    assert rows_of(part.train) <= rows_of(whole.train)
    assert part.digest != whole.digest
    assert read(folder, ("ant", "bee")).digest == whole.digest


def test_every_row_keeps_its_label(folder):
    """The class index of a row is the position of its label in the list of labels that `read` was called with."""
    ants = rows_of(read(folder, ("bee", "ant")).train)
    drawings = read(folder, ("ant", "bee"))
    assert rows_of(drawings.train) == ants
    assert np.bincount(np.concatenate([s.class_index for s in (drawings.train, drawings.validation, drawings.test)]))[
        0
    ] == len(np.load(folder / "ant.npy"))


def test_a_split_is_written_in_the_layout_of_google(folder, tmp_path):
    """A split is written as one file NAME.npy of uint8 (rows, 784) per label, and a note on the drawings' origin."""
    write_source(folder, "synthetic noise")
    drawings = read(folder, ("ant", "bee"))
    assert drawings.source == "synthetic noise"
    write_split(tmp_path / "out", drawings.test, drawings.labels, drawings.source)
    for index, label in enumerate(drawings.labels):
        written = np.load(tmp_path / "out" / f"{label}.npy")
        assert written.dtype == np.uint8
        assert np.array_equal(written, bitmaps_of(drawings.test)[drawings.test.class_index == index].reshape(-1, 784))
    assert (tmp_path / "out" / "SOURCE.txt").read_text() == "synthetic noise\n"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("ant", "zebra", "yak"), "no drawings of zebra, yak; the folder holds 2 classes"),
        (("ant", "ant"), "expected two or more classes, got ant, ant; name the folder above"),
        (("ant",), "expected two or more classes, got ant; name the folder above"),
    ],
)
def test_missing_repeated_and_single_classes_are_refused(folder, labels, message):
    """Missing, repeated and single classes are refused with an error that names the classes."""
    with pytest.raises(DrawingsRefused, match=message):
        read(folder, labels)


def test_names_of_classes_are_compared_in_nfc(folder, noise):
    """Classes may be named in another normal form of Unicode than their files; the labels of the dataset are in NFC."""
    write_bitmaps(folder / "cafe\u0301.npy", noise(100))
    assert read(folder, ("caf\u00e9", "ant")).labels == ("caf\u00e9", "ant")  # codespell:ignore caf
    assert read(folder, ("ant", "cafe\u0301")).labels == ("ant", "caf\u00e9")  # codespell:ignore caf


def test_a_missing_class_is_named_with_the_nearest_one(folder):
    """The error has the class that was probably meant, and the classes of the folder."""
    message = r"no drawings of 'Bees' \(did you mean 'bee'\?\); the folder holds 2 classes: ant, bee"
    with pytest.raises(DrawingsRefused, match=message):
        read(folder, ("ant", "Bees"))


def test_too_few_drawings_are_refused(folder, noise):
    """A class with too few different drawings is refused; the error names its file and how many are enough."""
    for bitmaps, got in ((noise(1), "1; 50 or more"), (np.repeat(noise(2), 2, axis=0), "4 with copies; 50 or more")):
        write_bitmaps(folder / "bee.npy", bitmaps)
        message = "at least 3 different drawings, one each for training, validation and test, got"
        with pytest.raises(DrawingsRefused, match=rf"bee\.npy: expected {message} {got} make a useful model"):
            read(folder, ("ant", "bee"))
    (folder / "bee.npy").write_text("<html>")
    with pytest.raises(FileRefused, match="web page"):
        read(folder, ("ant", "bee"))


@pytest.mark.parametrize("rows", [3, 5, 10, 20])
def test_a_small_class_has_drawings_in_every_split(tmp_path, noise, rows):
    """A class of at least three different drawings has drawings in every split, and no drawing is in two splits.

    The hashes alone would leave a split empty: of 50 drawings in a class, with a probability of 1 %.
    """
    labels = tuple(f"class {number}" for number in range(20))
    bitmaps = noise(rows * len(labels))
    for number, label in enumerate(labels):
        write_bitmaps(tmp_path / f"{label}.npy", bitmaps[number * rows : (number + 1) * rows])
    drawings = read(tmp_path, labels)
    for split in (drawings.train, drawings.validation, drawings.test):
        assert set(split.class_index) == set(range(20))
    splits = [rows_of(split) for split in (drawings.train, drawings.validation, drawings.test)]
    assert sum(map(len, splits)) == len(set.union(*splits)) == rows * len(labels)


def test_synthetic_drawings_cannot_pass_for_real_ones(folder):
    """A dataset request with another source is refused if the folder's note says that its drawings are synthetic."""
    write_source(folder, "synthetic noise")
    with pytest.raises(DrawingsRefused, match="the source must stay 'synthetic noise', got 'Quick, Draw! drawings'"):
        read(folder, ("ant", "bee"), source="Quick, Draw! drawings")


@pytest.mark.real_drawings
def test_real_drawings_split_eight_to_one_to_one(quickdraw):
    """Of 9,000 real drawings, 80 % are in the training split, 10 % in the validation split and 10 % in the test split.

    Each share may differ by one percentage point.
    """
    drawings = read(quickdraw, ("bear", "cat", "dog"))
    shares = np.array([len(drawings.train), len(drawings.validation), len(drawings.test)]) / 9000
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_a_split_holds_8_bytes_per_drawing(folder):
    """A split needs 8 bytes of memory per drawing, because the bitmaps stay in their files.

    Thus 50 million drawings need 400 MB instead of 40 GB.
    """
    split = read(folder, ("ant", "bee")).train
    assert all(isinstance(file, BitmapFile) for file in split.files)
    assert split.row.nbytes + split.class_index.nbytes == 8 * len(split)


def test_bitmaps_are_returned_in_the_requested_order(folder):
    """`take` returns the bitmaps in the order of the given indices, each with its class."""
    split = read(folder, ("ant", "bee")).train
    indices = np.random.default_rng(0).permutation(len(split))
    bitmaps, class_index = split.take(indices)
    assert np.array_equal(bitmaps, bitmaps_of(split)[indices])
    assert np.array_equal(class_index, split.class_index[indices])
    assert np.array_equal(np.concatenate([block for block, _ in split.blocks(7)]), bitmaps_of(split))


def ndjson(drawings, *, is_recognized=True) -> str:
    """Return the text of a simplified file with the given number of drawings, each of which has one stroke."""
    return "".join(
        json.dumps({"key_id": str(n), "word": "ant", "recognized": is_recognized, "drawing": [[[0, n], [n, 255]]]})
        + "\n"
        for n in range(drawings)
    )


@pytest.mark.parametrize(("rows", "kept"), [(0, 0), (7, 7), (30, 30), (1000, None)])
def test_spaced_drawings_keep_the_shares_of_the_classes(folder, rows, kept):
    """Spaced drawings are different drawings in order, from each class as many as its share of the split."""
    split = read(folder, ("ant", "bee")).train
    spaced = split.spaced(rows)
    places = list(zip(spaced.class_index, spaced.row, strict=True))
    assert len(set(places)) == len(places) == (len(split) if kept is None else kept)
    assert places == sorted(places)
    assert abs((spaced.class_index == 0).sum() - len(spaced) * (split.class_index == 0).mean()) <= 1


def test_strokes_are_rendered_into_the_given_folder(tmp_path):
    """Strokes are rendered to bitmap files in the folder `rasterized`; without it, files of strokes are refused."""
    (tmp_path / "ant.ndjson").write_text(ndjson(120))
    (tmp_path / "bee.ndjson").write_text("no drawing\n" + ndjson(90, is_recognized=False))
    with pytest.raises(DrawingsRefused, match="no folder for rendered bitmaps"):
        read(tmp_path, ("ant", "bee"))
    with pytest.raises(FileRefused, match=r"bee\.ndjson:1: "):
        read(tmp_path, ("ant", "bee"), rasterized=tmp_path / "drawn")
    drawings = read(tmp_path, ("ant", "bee"), rasterized=tmp_path / "drawn", skip_malformed=True)
    assert len(drawings.train) + len(drawings.validation) + len(drawings.test) == 210
    assert [set(flags) for flags in drawings.recognized] == [{1}, {0}]
    assert drawings.malformed == {"bee": 1}
    assert count_rows(DatasetRequest(folder=tmp_path, labels=("ant", "bee"), skip_malformed=True)) == 210
    read(tmp_path, ("ant", "bee"), rasterized=tmp_path / "few", skip_malformed=True, rows_per_class=80)
    assert len(np.load(tmp_path / "few" / "ant.npy")) == 80
    assert np.array_equal(drawings.train.files[0][7:8][0], rasterize([[[0, 7], [7, 255]]]))


def test_malformed_drawings_in_the_parts_of_a_class_are_counted(tmp_path):
    """A folder label=LABEL, as Spark writes it, has several files; what is skipped in each of them counts."""
    for label in ("ant", "bee"):
        for part in ("1", "2"):
            (tmp_path / f"label={label}" / part).mkdir(parents=True)
            bad = "no drawing\n" if label == "bee" else ""
            (tmp_path / f"label={label}" / part / "part.ndjson").write_text(ndjson(60) + bad)
    drawings = read(tmp_path, ("ant", "bee"), rasterized=tmp_path / "drawn", skip_malformed=True)
    assert drawings.malformed == {"bee": 2}


def test_recognised_flags_come_from_the_simplified_file(folder, tmp_path):
    """Row i of the bitmaps has the recognised flag of line i of the simplified file.

    The flag is unknown if the simplified file has fewer lines or, with `skip_malformed`, if the line is malformed.
    """
    data = tmp_path / "data"
    for inner in ("numpy_bitmap", "simplified"):
        (data / inner).mkdir(parents=True)
    for label in ("ant", "bee"):
        (folder / f"{label}.npy").rename(data / "numpy_bitmap" / f"{label}.npy")
    (data / "simplified" / "ant.ndjson").write_text(ndjson(50) + ndjson(50, is_recognized=False))
    drawings = read(data, ("ant", "bee"))
    ants, bees = drawings.recognized
    rows = drawings.test.row[drawings.test.class_index == 0]
    assert ants.tolist() == [1 if row < 50 else 0 if row < 100 else -1 for row in rows]
    assert set(bees) == {-1}
    (data / "simplified" / "ant.ndjson").write_text(ndjson(22) + "no drawing\n" * 78)
    with pytest.raises(FileRefused, match=r"ant\.ndjson:\d+: "):
        read(data, ("ant", "bee"))
    ants = read(data, ("ant", "bee"), skip_malformed=True).recognized[0]
    assert ants.tolist() == [1 if row < 22 else -1 for row in rows]
