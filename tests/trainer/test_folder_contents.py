"""Test which classes of a folder are chosen, and that no drawing of a folder is passed over without a word."""

import json
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sketchbatch_client.drawings.readers import PICTURE_SUFFIXES, labelled_files
from sketchbatch_trainer.cli import app
from sketchbatch_trainer.dataset import write_bitmaps
from sketchbatch_trainer.errors import DrawingsRefused
from sketchbatch_trainer.folder_contents import choose_labels, describe_choice, find_others, looks_like_drawing
from typer.testing import CliRunner

FOLDER = Path("data")
OWN = ["apple", "banana", "caf\u00e9"]  # codespell:ignore caf


@pytest.mark.parametrize(
    ("found", "classes", "is_default", "chosen"),
    [
        (OWN, "", False, OWN),
        (["dog", "owl", "cat"], "", False, ["dog", "owl", "cat"]),
        (["owl", "dog", "cat", "bear"], "", False, ["bear", "cat", "dog"]),
        (["owl", "dog", "cat", "bear"], "", True, ["bear", "cat", "dog"]),
        (["owl", "dog", "cat", "bear"], "all", False, ["owl", "dog", "cat", "bear"]),
        (OWN, "cafe\u0301, apple,", False, [OWN[2], "apple"]),
    ],
)
def test_without_names_the_classes_of_the_folder_are_chosen(found, classes, is_default, chosen):
    """The default is bear, cat and dog if the folder has all three, or all classes of a folder that lacks one."""
    assert choose_labels(FOLDER, found, classes, is_default=is_default) == tuple(chosen)


def test_the_choice_is_described():
    """The line names the chosen classes and how many others the folder has."""
    assert describe_choice(FOLDER, ("ant", "bee"), ["bee", "ant"]) == "classes: ant, bee (all 2 in data)"
    assert describe_choice(FOLDER, ("ant",), ["bee", "ant"]) == "classes: ant (1 of the 2 in data)"


@pytest.mark.parametrize(
    ("found", "classes", "message"),
    [
        (
            OWN,
            "Apples",
            r"data: no drawings of 'Apples' \(did you mean 'apple'\?\); the folder holds 3 classes: apple, b",
        ),
        (["ant"], "owl", "no drawings of owl; the folder holds 1 class: ant; --classes all takes all of them"),
        (
            ["full_numpy_bitmap_cat", "full_numpy_bitmap_ice cream"],
            "",
            "such as cat, .* remove 'full_numpy_bitmap_' fr",
        ),
        (["ant", "\udce9t\udce9"], "", r"plain text, but label 1 .* contains '\\udce9'; rename its file"),
        ([" ant", "bee"], "all", "plain text, but label 0 ' ant' begins or ends with white space; rename its file"),
        (["full%2Fsimplified%2Fdog"], "dog", "class, such as dog, got full%2Fsimplified%2Fdog; remove 'full%2Fsim"),
    ],
)
def test_missing_classes_are_refused_with_those_that_are_there(found, classes, message):
    """The error for a missing class names the classes of the folder, and how to rename files of Google's console."""
    with pytest.raises(DrawingsRefused, match=message):
        choose_labels(FOLDER, found, classes, is_default=False)


def write(folder: Path, *names: str) -> None:
    """Write files at these paths below `folder`: a picture under the ending of one that is read, or else nothing."""
    for name in names:
        path = folder / name
        assert path.is_relative_to(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in PICTURE_SUFFIXES:
            Image.new("L", (28, 28), 255).save(path, "PNG")
        else:
            path.write_bytes(b"")


def others_of(folder, labels=None, **options):
    """Return the other files of a folder of which all classes, or those of `labels`, are read."""
    found = labelled_files(folder)
    return find_others(folder, found.values(), labels or tuple(found), **options)


def test_files_that_look_like_drawings_are_told_from_others(tmp_path):
    """Pictures that are not read, other formats and nested folders look like drawings; hidden names do not count."""
    write(
        tmp_path, "cat/1.png", "cat/2.heic", "cat/3.HEIC", "cat/in/4.png", "owl/1.heic", "owl/2.heic", "fox.ndjson.gz"
    )
    write(tmp_path, "SOURCE.txt", "notes.txt", ".DS_Store", "_SUCCESS", "__MACOSX/cat/1.png", "cat/Thumbs.db")
    (tmp_path / "elk").mkdir()
    others = others_of(tmp_path)
    found = ["fox.ndjson.gz", "cat/2.heic", "cat/3.HEIC", "cat/in/4.png", "owl/1.heic", "owl/2.heic"]
    assert list(map(str, others.drawings)) == found
    assert list(map(str, others.empty)) == ["elk"]
    assert list(map(str, others.rest)) == ["notes.txt"]
    assert others.counts() == {
        ".gz": 1, ".heic": 4, ".png": 1, ".txt": 1, "empty folder": 1,
    }  # fmt: skip
    with pytest.raises(DrawingsRefused, match=r"got 6 files that would not be read: .*owl/\*\.heic \(2 files\).* elk;"):
        others.check(tmp_path)
    assert str(others).startswith("8 files of the folder passed over: ")


def test_files_of_no_class_are_named_if_classes_are_chosen(tmp_path):
    """Files of the other classes do not count; those that belong to no class are named, and do not end the command."""
    write(tmp_path, "cat/1.png", "owl/1.png", "owl/2.heic", "half.heic", "notes.txt", "cat/3.heic", "nested/in/1.png")
    others = others_of(tmp_path, ("cat",))
    assert list(map(str, others.drawings)) == ["cat/3.heic"]
    assert sorted(map(str, others.rest)) == ["half.heic", "nested/in/1.png", "notes.txt"]


def test_links_to_files_of_the_same_folder_are_counted_and_do_not_end_the_command(tmp_path):
    """The drawings of a link within a folder belong to the file to which it leads."""
    write(tmp_path, "pictures/cat/1.png", "arrays/cat.npy")
    (tmp_path / "pictures" / "cat" / "latest.png").symlink_to("1.png")
    (tmp_path / "arrays" / "latest.npy").symlink_to("cat.npy")
    for folder, link in (("pictures", "cat/latest.png"), ("arrays", "latest.npy")):
        assert list(labelled_files(tmp_path / folder)) == ["cat"]
        others = others_of(tmp_path / folder)
        assert (list(map(str, others.drawings)), list(map(str, others.rest))) == ([], [link])


def test_linked_folders_are_searched_once(tmp_path):
    """The files of a linked class are found, and a link to a folder above ends the search."""
    write(tmp_path, "elsewhere/1.png", "elsewhere/2.heic", "data/cat/1.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "data")
    assert list(map(str, others_of(tmp_path / "data").drawings)) == ["dog/2.heic"]


def test_a_second_kind_of_file_is_found(tmp_path):
    """Of files of two kinds in one folder only one kind is read, so the other one counts."""
    write(tmp_path, "cat.npy", "bear.ndjson")
    assert list(map(str, others_of(tmp_path).drawings)) == ["bear.ndjson"]


def test_other_formats_of_a_class_and_classes_that_were_not_chosen_do_not_count(tmp_path):
    """The formats of Google's layout hold the same drawings; and of chosen classes, only their own files count."""
    write(tmp_path, "numpy_bitmap/cat.npy", "numpy_bitmap/dog.npy", "simplified/cat.ndjson", "raw/owl.ndjson")
    write(tmp_path, "cat.npz", "runs/test/cat.npy")
    assert list(map(str, others_of(tmp_path).drawings)) == ["cat.npz", "raw/owl.ndjson", "runs/test/cat.npy"]
    assert list(map(str, others_of(tmp_path, ("dog",)).drawings)) == []
    chosen = others_of(tmp_path, ("cat",), excluded=tmp_path / "runs")
    assert list(map(str, chosen.drawings)) == ["cat.npz"]


@pytest.mark.parametrize("seed", range(20))
def test_every_visible_file_is_read_or_counted(tmp_path, seed):
    """Of any tree of files, each one that is not hidden is either a drawing that is read, or is counted."""
    random_ = random.Random(seed)
    endings = (*PICTURE_SUFFIXES, ".PNG", ".heic", ".txt", ".npz", "", ".ndjson.gz", ".svg")
    write(tmp_path, "cat/first.png", "dog/first.png")
    for number in range(30):
        folder = random_.choice(["cat", "dog", "owl", "cat/in", "train/fox", ".", "[1] \u00fc #%20"])
        name = random_.choice(["a", " b", "-c", "d(1)", ".e", "_f"])
        write(tmp_path, f"{folder}/{name}{number}{random_.choice(endings)}")
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    visible = {path for path in files if not any(part[0] in "._" for part in path.parts)}
    classes = set(labelled_files(tmp_path).values())
    read = {path for path in visible if path.suffix.lower() in PICTURE_SUFFIXES and tmp_path / path.parent in classes}
    others = others_of(tmp_path)
    counted = [*others.drawings, *others.rest]
    assert read
    assert sorted(counted) == sorted(visible - read)
    assert sum(others.counts().values()) == len(counted) + len(others.empty)
    assert all(map(looks_like_drawing, others.drawings))


def train(*words):
    """Run the command `train` in this process."""
    return CliRunner().invoke(app, ["train", *map(str, words)])


def test_train_refuses_a_folder_before_it_reads_drawings(tmp_path, noise, monkeypatch):
    """`train` refuses files that it would pass over; with `--ignore-others` it names them on stderr and goes on."""
    for label in ("ant", "bee"):
        write_bitmaps(tmp_path / "d" / f"{label}.npy", noise(3)[:2])
    write(tmp_path / "d", "owl.ndjson", "notes.txt")
    refused = train("--data", tmp_path / "d", "--run", tmp_path / "run")
    assert "expected drawings that can be read, got 1 file that would not be read: owl.ndjson" in str(refused.exception)
    assert not (tmp_path / "run").exists()
    accepted = train("--data", tmp_path / "d", "--run", tmp_path / "run", "--ignore-others")
    assert "classes: ant, bee (all 2 in" in accepted.stdout
    assert accepted.stderr == "2 files of the folder passed over: owl.ndjson, notes.txt\n"
    assert "ant.npy: expected at least 3 different drawings" in str(accepted.exception)


def test_train_refuses_another_training_before_it_reads_drawings(tmp_path, noise):
    """`train` refuses a finished run of other classes without reading a drawing or importing TensorFlow."""
    for label in ("ant", "bee"):
        write_bitmaps(tmp_path / "d" / f"{label}.npy", noise(3))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"labels": ["ant", "owl"], "data_digest": "0", "seed": 0}))
    (tmp_path / "run" / "model.keras").write_bytes(b"")
    refused = train("--data", tmp_path / "d", "--run", tmp_path / "run")
    assert "holds a finished training with other classes; keep it and name another folder" in str(refused.exception)
    itself = train("--data", tmp_path / "d", "--run", tmp_path / "d")
    assert "the run must not contain its input" in str(itself.exception)


def sketch_of(bitmaps):
    """Return bitmaps with paper at the edge and ink of level 255."""
    sketches = np.zeros_like(bitmaps)
    sketches[:, 9:19, 9:19] = 255 * (bitmaps[:, 9:19, 9:19] % 2)
    return sketches


def test_train_warns_of_bitmaps_that_make_a_useless_model(tmp_path, noise):
    """`train` names each class whose bitmaps have only the values 0 and 1 or are inverted, in .npy and in Parquet."""
    folder, sketches = tmp_path / "d", sketch_of(noise(40))
    write_bitmaps(folder / "ant.npy", sketches)
    write_bitmaps(folder / "pear.npy", sketches // 255)
    write_bitmaps(folder / "owl.npy", 255 - sketches)
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    for label, own in (("ant", sketches), ("pear", sketches // 255)):
        rows = [row.tobytes() for row in own]
        pq.write_table(pa.table({"bitmap": pa.array(rows, pa.binary(784))}), parquet / f"{label}.parquet")
    # A recipe without teachers ends the command after it has read the drawings and before it trains.
    words = ("--run", tmp_path / "run", "--recipe", "article", "--teacher", tmp_path / "teacher")
    for data, ending in ((folder, "npy"), (parquet, "parquet")):
        result = train("--data", data, *words)
        assert "recipe article uses no teacher" in str(result.exception)
        lines = result.stderr.splitlines()
        assert [text.partition(": ")[0] for text in lines if "bitmaps" in text] == (
            ["owl.npy", "pear.npy"] if ending == "npy" else ["pear.parquet"]
        )
        assert f"pear.{ending}: the bitmaps have only the values 0 and 1; " in result.stderr


def test_train_names_the_option_that_skips_malformed_drawings(tmp_path, noise):
    """The error of a malformed line, row or picture ends with `--skip-malformed`, unless the option is set."""
    lines, rows, pictures = (tmp_path / name for name in ("lines", "rows", "pictures"))
    stroke = json.dumps({"drawing": [[[0, 255], [0, 255]]]}) + "\n"
    write(pictures, "ant/1.png", "bee/1.png")
    write(lines, "ant.ndjson", "bee.ndjson")
    (pictures / "ant" / "1.png").write_bytes(b"oops")
    rows.mkdir()
    bitmaps = [row.tobytes() for row in sketch_of(noise(3))]
    for label in ("ant", "bee"):
        (lines / f"{label}.ndjson").write_text(3 * stroke + "{oops\n")
        column = pa.array([*bitmaps, b"oops"], pa.binary())
        pq.write_table(pa.table({"bitmap": column}), rows / f"{label}.parquet")
    for data, place in ((lines, "ant.ndjson:4: "), (rows, "ant.parquet: row 3: "), (pictures, "ant/1.png: ")):
        refused = str(train("--data", data, "--run", tmp_path / "run").exception)
        assert place in refused
        assert refused.endswith("; correct it, or skip malformed drawings with --skip-malformed")
        skipped = train("--data", data, "--run", tmp_path / "run", "--skip-malformed")
        assert place not in str(skipped.exception)


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ([], ' --rows "4000"'),
        (["DATA=my data"], ' --data "my data"'),
        (["DATA=d", "RECIPE=article", "CLASSES=a,b"], ' --data "d" --classes "a,b" --recipe "article"'),
        (["DATA=d", "ROWS=9"], ' --data "d" --rows "9"'),
        (["DATA=d", "ROWS=all"], ' --data "d"'),
        (
            ["DATA=d", "RECIPE=finetune", "START_FROM=models/quickdraw-345", "RESTART=1", "IGNORE_OTHERS=1"],
            ' --data "d" --recipe "finetune" --start-from "models/quickdraw-345" --restart --ignore-others',
        ),
        (["DATA=d", "SKIP_MALFORMED=1"], ' --data "d" --skip-malformed'),
    ],
)
def test_make_train_passes_its_variables_on(root, words, flags):
    """`make train` passes each variable of the command line to `sketchbatch-train train`; DATA alone suffices."""
    environment = os.environ | {"UV_DEFAULT_INDEX": "unused"}  # without it, make runs pip
    made = subprocess.run(["make", "-n", "train", *words], cwd=root, env=environment, capture_output=True, text=True)
    lines = made.stdout
    assert f'.venv/bin/sketchbatch-train train --run "runs/train"{flags}\n' in lines
    fetched = '.venv/bin/sketchbatch-train fetch --classes "bear,cat,dog" --rows "4000"\n'
    assert (fetched in lines) == (not words)


def test_the_help_names_every_layout_and_way_out():
    """The help of `train` names pictures, the layouts of files, and the options that accept or discard something."""
    text = " ".join(CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "400"}).output.split())
    for words in (
        "folder of pictures (PNG, JPEG, WebP",
        "LABEL.npy",
        "--ignore-others",
        "--restart",
        "without them in",
    ):
        assert words in text


@pytest.mark.parametrize("state", ["missing", "empty", "of an interrupted fetch"])
@pytest.mark.parametrize("command", ["explore", "train"])
def test_without_data_the_message_names_fetch_and_data(tmp_path, state, command):
    """The default folder is that of `fetch`, of which a new user may not know."""
    folder = tmp_path / "drawings"
    if state != "missing":
        folder.mkdir()
    if state == "of an interrupted fetch":
        (folder / ".fetching").write_text("")
    words = {"explore": ["--output", str(tmp_path / "page.html")], "train": ["--run", str(tmp_path / "run")]}[command]
    refused = CliRunner().invoke(app, [command, *words], env={"SKETCHBATCH_DATA": str(folder)}).exception
    assert "has no drawings yet; name another folder with --data, or first run: sketchbatch-train fetch" in str(refused)
