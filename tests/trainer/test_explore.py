"""Test the command `explore`: its statistics of drawings, and its page.

The tests use so few drawings that the expected values can be counted by hand.
"""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explored_folders import RAW, SIMPLE, explored, line, page_of, write_folder
from PIL import Image
from sketchbatch_client.drawings.drawing import Drawing
from sketchbatch_client.drawings.rasterize import rasterize, render
from sketchbatch_client.drawings.readers import read_bitmaps
from sketchbatch_client.errors import FileRefused
from sketchbatch_client.evaluation.stats.intervals import wilson
from sketchbatch_trainer.cli import app
from sketchbatch_trainer.dataset import write_bitmaps, write_source
from sketchbatch_trainer.errors import DrawingsRefused
from sketchbatch_trainer.explore import exploring
from sketchbatch_trainer.explore.drawing_statistics import NEAR_EMPTY, Sample, differ, quantile
from sketchbatch_trainer.explore.explore_json import as_json
from sketchbatch_trainer.explore.exploring import find_files
from sketchbatch_trainer.explore.polylines import TIME_COLOURS, plain, timed
from sketchbatch_trainer.explore.similarity import find_neighbours
from typer.testing import CliRunner

pytestmark = pytest.mark.timeout(60)  # a page has ten charts, which take seconds on a busy machine


def drawing(strokes) -> Drawing:
    """Return a drawing with these strokes."""
    return Drawing(7, "ant", "US", True, 0.0, strokes)


@pytest.fixture
def folder(tmp_path, noise):
    """Write a folder of the classes `ant` and `bee`."""
    return write_folder(tmp_path / "data", noise)


def test_drawings_are_counted_by_class_country_and_time(folder):
    """The drawings of a class are counted by country, hour, day, number of strokes and number of points."""
    ants = explored(folder).classes[0]
    own = ants.simplified
    assert (own.drawings, own.recognized, ants.skipped) == (4, 3, {})
    assert own.countries == {"US": 2, "SE": 2}
    assert own.recognized_in == {"US": 2, "SE": 1}
    assert own.hours == {23: 3, 4: 1}
    assert own.days == {"2017-03-02": 3, "2017-01-31": 1}
    assert own.strokes == {1: 2, 2: 1, 6: 1}
    assert own.points == {2: 2, 5: 1, 15: 1}
    assert not own.durations
    assert [len(sample.drawings) for sample in (own.sample, own.other_sample)] == [3, 1]


@pytest.mark.parametrize("flag", ["yes", None])
def test_a_drawing_without_a_readable_flag_counts_neither_as_recognised_nor_as_other(folder, tmp_path, flag):
    """Shares are those of the drawings whose flag is known; without any flag, the page shows no share."""
    unknown = line(SIMPLE, "US", recognized=flag)
    (folder / "simplified" / "ant.ndjson").write_text(unknown + line(SIMPLE, "US", recognized=False) + unknown)
    statistics = explored(folder)
    own = statistics.classes[0].simplified
    assert (own.drawings, own.flagged, own.recognized) == (3, 1, 0)
    assert (own.countries, own.flagged_in, own.recognized_in) == ({"US": 3}, {"US": 1}, {"US": 0})
    assert [len(sample.drawings) for sample in (own.sample, own.other_sample)] == [2, 1]
    assert "recognised 0 of 1 drawings" in page_of(statistics, tmp_path)
    counted = as_json(statistics)["classes"]["ant"]["simplified"]
    assert (counted["with_recognised_flag"], counted["recognised"]) == (1, 0)
    (folder / "simplified" / "ant.ndjson").write_text(unknown * 3)
    shutil.rmtree(folder / "raw")
    page = page_of(explored(folder), tmp_path)
    assert "Random drawings" in page
    assert "not recognised" not in page.replace("All figures include recognised and unrecognised drawings", "")
    assert "The game" not in page


def test_drawing_times_come_from_raw_files(folder):
    """The drawing time is the time from the first to the last point of a raw drawing, including pauses.

    Drawing times are counted in tenths of a second.
    """
    statistics = explored(folder)
    assert statistics.classes[0].raw.durations == {25: 1, 4: 1}
    assert statistics.counts("durations", "raw") == {"ant": Counter({25: 1, 4: 1})}
    assert as_json(statistics)["classes"]["ant"]["raw"]["seconds"]["upper_quartile"] == 2.5


def test_a_drawing_time_of_a_day_counts_as_a_minute(folder):
    """A drawing time above one minute, which must be wrong, counts as one minute.

    Otherwise a drawing time of a day would stretch the chart, and its many tenths of a second would need much memory.
    """
    (folder / "raw" / "ant.ndjson").write_text(line([[[1, 2], [1, 2], [0, 86_400_000]]]))
    assert explored(folder).classes[0].raw.durations == {600: 1}


def test_mean_and_deviation_agree_with_numpy(folder, noise):
    """The mean and the standard deviation of each pixel, computed block by block, are equal to those of NumPy."""
    own = explored(folder).classes[0].bitmaps
    assert own.mean == pytest.approx(noise(6).mean(axis=0))
    assert own.deviation == pytest.approx(noise(6).std(axis=0))
    assert own.ink == Counter(np.rint(noise(6).mean(axis=(1, 2)) / 255 * 1000).astype(int).tolist())


def test_copies_are_found_within_and_across_classes(folder, noise):
    """`explore` counts the copies of a bitmap in the same class and in other classes.

    Copies are equal byte for byte: a bitmap in which one pixel differs is not a copy.
    """
    ant, bee = noise(6), noise(7)
    other = ant[:1].copy()
    other[0, 0, 0] ^= 1
    write_bitmaps(folder / "numpy_bitmap" / "ant.npy", np.concatenate([ant, ant[2:4], ant[2:3], other]))
    write_bitmaps(folder / "numpy_bitmap" / "bee.npy", np.concatenate([bee, ant[5:]]))
    copies = explored(folder).copies
    assert copies.extra == (3, 0)
    assert copies.shared == 1
    assert copies.groups == (((0, 5), (1, 7)), ((0, 2), (0, 6), (0, 8)), ((0, 3), (0, 7)))


def test_near_empty_drawings_are_found_and_shown(folder, noise, tmp_path):
    """A bitmap counts as near-empty if it has less ink than a straight line across the page.

    A blank bitmap and a dot are near-empty. The page shows these bitmaps and states their number.
    """
    blank, dot = np.zeros((28, 28), np.uint8), render([[[9, 11], [9, 9]]])
    across = rasterize([[[0, 255], [90, 90]]])
    write_bitmaps(folder / "numpy_bitmap" / "ant.npy", np.stack([noise(1)[0], across, dot, blank]))
    own = explored(folder).classes[0].bitmaps
    assert own.near_empty == 2
    assert [row for row, _ in own.emptiest] == [3, 2, 1, 0]
    assert NEAR_EMPTY < own.emptiest[2][1] < NEAR_EMPTY + 0.001
    page = page_of(explored(folder), tmp_path)
    assert "2 bitmaps have less ink than one straight line across the page" in page
    assert page.count('class="low"') == 2


def test_similar_classes_are_neighbours(noise):
    """Of three classes, the two whose drawings are similar are the first pair of neighbours.

    Both similar classes consist of the same drawing with random noise. Unequal numbers of rows have no effect.
    """
    like, unlike = noise(2).astype(np.float64)
    rng = np.random.default_rng(0)

    def around(bitmap, rows):
        return (bitmap + rng.normal(0, 5, (rows, 28, 28))).clip(0, 255).astype(np.uint8)

    found = find_neighbours([around(like, 40), around(unlike, 40), around(like, 400)])
    assert found.compared == (40, 40, 400)
    assert found.shares.sum(axis=1) == pytest.approx([1, 1, 1])
    assert found.shares[0, 0] > 0.3
    assert found.shares[1, 1] > 0.99
    first = found.pairs[0]
    assert (first.first, first.second) == (0, 2)
    assert len({place for couple in first.couples for place in couple}) == 6


def test_a_class_of_one_drawing_can_be_compared(folder, noise, tmp_path):
    """Even a class of one drawing is compared with other classes; a single class is not compared."""
    write_bitmaps(folder / "numpy_bitmap" / "bee.npy", noise(1))
    assert explored(folder).neighbours.compared == (6, 1)
    assert explored(folder, ("bee",)).neighbours is None
    assert "Similar classes" not in page_of(explored(folder, ("bee",)), tmp_path)


def test_the_sample_is_uniform():
    """In 400 random samples of 5 of 50 drawings, each drawing is in about equally many samples."""
    kept = Counter()
    for seed in range(400):
        sample = Sample(5)
        sample._random.seed(seed)
        for number in range(50):
            sample.offer(number)
        kept.update(sample.drawings)
    assert sum(kept.values()) == 2000
    assert 15 < min(kept.values()) <= max(kept.values()) < 70


def test_quantiles_and_intervals_agree_with_calculations_by_hand():
    """Quantiles and intervals agree with calculations by hand.

    `differ` returns true only if the chi-squared test finds a difference that chance does not explain.
    """
    counts = Counter({1: 1, 2: 2, 10: 1})
    assert [quantile(counts, share) for share in (0.25, 0.5, 0.75, 0.99)] == [1, 2, 2, 10]
    low, high = wilson(np.array([0.5]), np.array([10.0]))
    assert (low[0], high[0]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert not differ([24, 23, 24], [25, 25, 25])
    assert differ([90, 60], [100, 100])
    assert not differ([5], [9])


def test_only_the_rows_asked_for_are_read(folder):
    """With `rows=1`, only the first row of each file is read."""
    ant = explored(folder, rows=1).classes[0]
    assert [len(part) for part in ant.parts] == [1, 1, 1]


def test_progress_is_reported_for_each_file(folder):
    """For each file, the total number of drawings is reported first, and then how many of them have been read."""
    announced, done = [], Counter()

    def progress(name, rows):
        announced.append((name, rows))
        return lambda rows: done.update({name: rows})

    explored(folder, progress=progress)
    files = [
        ("simplified/ant.ndjson", 4),
        ("raw/ant.ndjson", 2),
        ("numpy_bitmap/ant.npy", 6),
        ("numpy_bitmap/bee.npy", 7),
    ]
    assert announced == [*files, ("comparing bitmaps", 0)]
    assert done == dict(files)


def test_classes_are_sorted_by_name(folder):
    """The classes are sorted by name without regard to case, and a folder without drawings is refused."""
    (folder / "raw" / "The Wasp.ndjson").write_text(line(RAW))
    assert list(find_files(folder)) == ["ant", "bee", "The Wasp"]
    with pytest.raises(FileRefused, match="no such folder"):
        find_files(folder / "nowhere")


def test_endings_are_read_in_any_case(folder):
    """A file NAME.NPY next to files NAME.npy is explored, as `train` reads it; two files of one label are refused."""
    (folder / "numpy_bitmap" / "bee.npy").rename(folder / "numpy_bitmap" / "bee.NPY")
    assert list(find_files(folder)) == ["ant", "bee"]
    shutil.copy(folder / "numpy_bitmap" / "bee.NPY", folder / "numpy_bitmap" / "bee.npy")
    with pytest.raises(FileRefused, match=r"must not have the same label as bee\.NPY, got bee twice"):
        find_files(folder)


def test_the_bitmaps_of_parquet_files_are_kept_on_disk(tmp_path, noise, monkeypatch):
    """Files may be larger than the memory, so their bitmaps are read in blocks and copied to a temporary file."""
    bitmaps = noise(5)
    pq.write_table(pa.table({"bitmap": [row.tobytes() for row in bitmaps]}), tmp_path / "ant.parquet")
    monkeypatch.setattr(exploring, "_BLOCK_ROWS", 2)
    [own] = explored(tmp_path, rows=4).classes
    assert isinstance(own.bitmaps.bitmaps, np.memmap)
    assert np.array_equal(own.bitmaps.bitmaps, bitmaps[:4])


def test_pictures_and_flat_files_of_strokes_are_explored(tmp_path, noise):
    """`explore` reads each layout that `train` reads: folders of pictures, and strokes next to each other."""
    for number, bitmap in enumerate(noise(3)):
        (tmp_path / "pictures" / "ant").mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - bitmap).save(tmp_path / "pictures" / "ant" / f"{number}.png")
    own = explored(tmp_path / "pictures").classes[0]
    assert (own.label, len(own.bitmaps), own.bitmaps.is_drawn) == ("ant", 3, False)
    (tmp_path / "strokes").mkdir()
    (tmp_path / "strokes" / "ant.ndjson").write_text(line(SIMPLE))
    (tmp_path / "strokes" / "bee.ndjson").write_text(line(RAW))
    ant, bee = explored(tmp_path / "strokes").classes
    assert (ant.simplified.drawings, ant.raw, bee.simplified, bee.raw.drawings) == (1, None, None, 1)
    assert bee.bitmaps.is_drawn


def explore(folder, *words):
    """Run the command `explore` in this process."""
    return CliRunner().invoke(app, ["explore", "--data", str(folder), *map(str, words)])


def test_files_that_explore_cannot_read_are_refused_or_counted(folder, tmp_path):
    """A file that looks like a drawing is refused. With `--ignore-others` the JSON file counts the others."""
    (folder / "numpy_bitmap" / "wasp.heic").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    words = ("--output", tmp_path / "page.html", "--json", tmp_path / "all.json")
    refused = explore(folder, *words).exception
    assert "got 1 file that would not be read: numpy_bitmap/wasp.heic" in str(refused)
    done = explore(folder, *words, "--ignore-others")
    assert done.exit_code == 0, done.output
    assert "2 files of the folder passed over: numpy_bitmap/wasp.heic, notes.txt" in done.stderr
    assert json.loads((tmp_path / "all.json").read_text())["passed_over"] == {".heic": 1, ".txt": 1}


def test_bitmaps_may_lie_in_the_folder_itself(tmp_path, noise):
    """The bitmaps may be in the folder itself, where `sketchbatch-train sketch` writes them, instead of numpy_bitmap/.

    The page states that synthetic drawings are synthetic.
    """
    write_bitmaps(tmp_path / "ant.npy", noise(3))
    write_source(tmp_path, "synthetic noise")
    page = page_of(explored(tmp_path), tmp_path)
    assert "Synthetic sketches." in page
    assert "synthetic noise" in page


def test_bitmaps_are_drawn_from_strokes_if_there_is_no_bitmap_file(folder):
    """If a class has no file of bitmaps, its bitmaps are rendered from its strokes, and the statistics state this.

    Raw strokes are simplified before they are rendered.
    """
    shutil.rmtree(folder / "numpy_bitmap")
    statistics = explored(folder)
    own = statistics.classes[0].bitmaps
    assert own.is_drawn
    assert np.array_equal(own.bitmaps[0], rasterize(SIMPLE))
    assert statistics.lacking("numpy_bitmap") == ["ant"]
    shutil.rmtree(folder / "simplified")
    assert len(explored(folder).classes[0].bitmaps) == 2


def test_a_malformed_line_is_refused_or_skipped(folder, tmp_path):
    """A malformed line raises an error that names the file and the line.

    With `skip_malformed`, malformed lines are skipped, and the page states their number by file.
    """
    path = folder / "simplified" / "ant.ndjson"
    path.write_text(path.read_text() + "{oops\n" + line([]) + line(SIMPLE))
    with pytest.raises(FileRefused, match=r"ant\.ndjson:5: not JSON"):
        explored(folder)
    statistics = explored(folder, skip_malformed=True)
    assert (statistics.classes[0].simplified.drawings, statistics.classes[0].skipped["simplified"].number) == (5, 2)
    assert re.search(
        r"ant\.ndjson, first at line 5: not JSON[^<]*</td><td class=\"n\">2</td>", page_of(statistics, tmp_path)
    )


@pytest.mark.parametrize("kind", ["pictures", "parts", "parquet"])
def test_skipped_pictures_and_rows_are_counted(tmp_path, noise, kind):
    """The page and the JSON have the number of malformed pictures and rows, with the place of the first one."""
    bitmaps = noise(2)
    if kind == "pictures":
        (tmp_path / "ant").mkdir()
        for name, bitmap in zip("ac", bitmaps, strict=True):
            Image.fromarray(bitmap).save(tmp_path / "ant" / f"{name}.png")
        (tmp_path / "ant" / "b.png").write_bytes(b"no picture")
        place = r"ant, first at b\.png: expected a picture"
    elif kind == "parts":
        (tmp_path / "label=ant" / "day=1").mkdir(parents=True)
        (tmp_path / "label=ant" / "day=1" / "a.ndjson").write_text(line(SIMPLE) + "oops\n" + line(SIMPLE))
        place = r"label=ant, first at day=1/a\.ndjson, line 2: not JSON"
    else:
        rows = [bitmaps[0].tobytes(), b"\xff\xd8\xff\xe0 no picture", bitmaps[1].tobytes()]
        pq.write_table(pa.table({"bitmap": rows}), tmp_path / "ant.parquet")
        place = r"ant\.parquet, first at row 1: cannot be read as a picture"
    with pytest.raises(FileRefused):
        explored(tmp_path)
    statistics = explored(tmp_path, skip_malformed=True)
    assert (len(statistics.classes[0].bitmaps), statistics.classes[0].skipped["numpy_bitmap"].number) == (2, 1)
    assert re.search(place + r"[^<]*</td><td class=\"n\">1</td>", page_of(statistics, tmp_path))
    assert as_json(statistics)["classes"]["ant"]["bitmaps"]["malformed"] == 1


def test_the_command_names_the_option_that_skips_malformed_lines(folder, tmp_path):
    """The error of a malformed line ends with the option; the page states when lines are skipped.

    Other errors do not name the option, because it does not help.
    """
    strokes = tmp_path / "own"
    strokes.mkdir()
    (strokes / "ant.ndjson").write_text("{oops\n" + line(SIMPLE))
    (folder / "simplified" / "ant.ndjson").write_text(line(SIMPLE) + "{oops\n")
    page = tmp_path / "page.html"
    for data, number in ((folder, 2), (strokes, 1)):
        refused = str(explore(data, "--output", page).exception)
        assert re.search(rf"ant\.ndjson:{number}: not JSON", refused)
        assert refused.endswith("; correct it, or skip malformed drawings with --skip-malformed")
        done = explore(data, "--output", page, "--skip-malformed")
        assert done.exit_code == 0, done.output
        assert "malformed drawings skipped: ant: 1\n" in done.stderr
        assert (
            "<code>explore</code> ends at the first malformed line, row or picture; with <code>--skip-malformed</code>"
            in (page.read_text(encoding="utf-8"))
        )
    assert "--skip-malformed" not in str(explore(tmp_path / "nowhere", "--output", page).exception)
    (folder / "simplified" / "ant.ndjson").write_text(line(SIMPLE))
    np.save(folder / "numpy_bitmap" / "ant.npy", np.zeros((3, 784)))
    refused = str(explore(folder, "--output", page, "--classes", "ant").exception)
    assert "ant.npy: expected" in refused
    assert "--skip-malformed" not in refused


def test_suspicious_bitmaps_are_named_on_stderr(tmp_path, noise):
    """`explore` warns of a class whose bitmaps have only the values 0 and 1, or are inverted."""
    for label, bitmaps in (("ant", noise(9) // 2), ("bee", noise(9) % 2), ("owl", 255 - noise(9) // 4)):
        bitmaps[:, 0, 0] = bitmaps[0, 14, 14]
        write_bitmaps(tmp_path / "numpy_bitmap" / f"{label}.npy", bitmaps)
    done = explore(tmp_path, "--output", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    bee, owl = done.stderr.splitlines()
    assert bee.startswith("numpy_bitmap/bee.npy: the bitmaps have only the values 0 and 1; ")
    assert owl.startswith("numpy_bitmap/owl.npy: most pixels of the bitmaps are ink: are they inverted?")


def test_files_without_a_drawing_are_refused(tmp_path):
    """A file without a drawing is refused by its name, also if another file of the class has drawings."""
    for kind in ("raw", "simplified"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "ant.ndjson").write_text(line(SIMPLE) if kind == "simplified" else "")
    with pytest.raises(
        DrawingsRefused, match=r"got a file without any: .*raw/ant\.ndjson; remove such files, or choose"
    ):
        explored(tmp_path)


@pytest.mark.parametrize("contents", ["", "no drawing\n"])
def test_a_class_without_a_drawing_is_refused(tmp_path, contents):
    """The page would count it as a class and say that its file does not exist. Another choice of classes works."""
    (tmp_path / "ant.ndjson").write_text(line(SIMPLE))
    (tmp_path / "bee.ndjson").write_text(contents)
    (tmp_path / "cow.ndjson").write_text(contents)
    words = ("--skip-malformed", "--output", tmp_path / "page.html")
    refused = explore(tmp_path, *words).exception
    assert isinstance(refused, DrawingsRefused)
    assert re.search(r"got 2 files without any: .*bee\.ndjson, .*cow\.ndjson; remove such files", str(refused))
    assert explore(tmp_path, "--classes", "ant", *words).exit_code == 0


def test_lines_are_coloured_and_played_in_the_order_of_drawing():
    """The pieces of a drawing are coloured and animated in the order in which they were drawn.

    The times of a raw drawing determine the colours and the start times of its pieces. A single point becomes a line of
    two equal points, which is visible as a dot.
    """
    pieces = timed(drawing(RAW))
    assert pieces[0]["colour"] == TIME_COLOURS[0]
    assert pieces[-1]["colour"] == TIME_COLOURS[-1]
    assert [piece["start_s"] for piece in pieces] == sorted(piece["start_s"] for piece in pieces)
    assert pieces[-1]["start_s"] == pytest.approx(2.5 / 4, abs=0.01)
    assert len(set(pieces[-1]["points"].split())) == 1
    assert len(pieces[-1]["points"].split()) == 2
    assert timed(drawing(SIMPLE))[-1]["colour"] in TIME_COLOURS[6:]


def test_a_drawing_of_any_size_fills_its_square():
    """A drawing of any size is scaled to its square on the page, with the same scale for both axes, and centred."""
    assert plain(drawing([[[1000, 3000], [500, 1500]]])) == ["0,64 255,191"]
    assert plain(drawing([[[5], [5]]])) == ["128,128 128,128"]


def test_labels_are_escaped(folder, tmp_path):
    """Labels are escaped, because a file name may contain HTML or dollar signs."""
    (folder / "numpy_bitmap" / "bee.npy").rename(folder / "numpy_bitmap" / "<b>&' $x^$.npy")
    page = page_of(explored(folder), tmp_path)
    assert "<b>&'" not in page
    assert "&lt;b&gt;&amp;&#39; $x^$" in page


def test_tensorflow_is_not_needed():
    """Exploring drawings imports no TensorFlow, because the import takes seconds."""
    command = "import sys, sketchbatch_trainer.explore.explore_page, sketchbatch_trainer.explore.explore_json"
    assert subprocess.run([sys.executable, "-c", f"{command}; sys.exit('tensorflow' in sys.modules)"]).returncode == 0


@pytest.mark.real_drawings
@pytest.mark.timeout(120)
def test_the_command_writes_one_page_of_real_drawings(quickdraw, run_command, tmp_path):
    """The command writes one page, which loads no other file, and the JSON file that the command line names."""
    out = tmp_path / "out"
    arguments = ["--data", quickdraw, "--output", out / "page.html", "--json", out / "statistics.json"]
    finished = run_command("sketchbatch-train", "explore", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert "bear, cat, dog: 9,000 drawings" in finished.stdout
    assert sorted(path.name for path in out.iterdir()) == ["page.html", "statistics.json"]
    page = (out / "page.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == 10
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)|url\(|<link|<script|@import|https?:", page)
    for picture in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page):
        assert base64.b64decode(picture).startswith(b"<?xml")
    statistics = json.loads((out / "statistics.json").read_text(encoding="utf-8"))
    assert statistics["classes"]["cat"]["simplified"]["recognised"] == 23
    assert statistics["classes"]["cat"]["bitmaps"]["drawings"] == 4000
    assert statistics["neighbours"]["pairs"][0]["labels"] == ["bear", "dog"]


@pytest.mark.real_drawings
def test_drawn_bitmaps_agree_with_googles(quickdraw, tmp_path):
    """Bitmaps that are rendered from strokes agree with the bitmaps that Google published.

    For the first 25 cats, the mean of each pixel differs by less than one grey level.
    """
    (tmp_path / "simplified").mkdir()
    shutil.copy(quickdraw / "simplified" / "cat.ndjson", tmp_path / "simplified")
    own = explored(tmp_path, ("cat",)).classes[0].bitmaps
    google = read_bitmaps(quickdraw / "numpy_bitmap" / "cat.npy")[:25]
    assert np.abs(own.mean - google.mean(axis=0)).max() < 1


def test_an_unknown_class_is_refused_in_one_line(folder, run_command, tmp_path):
    """An unknown class is refused in one line, and no page is written."""
    arguments = ["--data", folder, "--classes", "yak", "--output", tmp_path / "page.html"]
    finished = run_command("sketchbatch-train", "explore", *arguments)
    assert finished.returncode == 1
    assert finished.stderr == (
        f"sketchbatch-train: {folder}: no drawings of yak; the folder holds 2 classes: ant, bee; "
        "--classes all takes all of them\n"
    )
    assert not (tmp_path / "page.html").exists()
