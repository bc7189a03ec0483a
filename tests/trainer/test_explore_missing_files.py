"""Test what the page of `explore` says about missing files: which folder has them, or which command fetches them."""

import re
import shutil
from pathlib import Path

import pytest
from explored_folders import BINARY, SIMPLE, explored, line, page_of, write_folder
from PIL import Image
from sketchbatch_trainer.dataset import write_bitmaps

pytestmark = pytest.mark.timeout(60)  # a page has ten charts, which take seconds on a busy machine


@pytest.fixture
def folder(tmp_path, noise):
    """Write a folder of the classes `ant` and `bee`."""
    return write_folder(tmp_path / "data", noise)


MISSING = {
    "simplified": ("There are no simplified files, which contain: recognised share", "--format simplified"),
    "raw": ("There are no raw files, which contain: drawing times", "--format raw"),
    "numpy_bitmap": ("There are no numpy_bitmap files", "--format npy"),
}


@pytest.mark.parametrize("kept", [("simplified",), ("raw",), ("numpy_bitmap",), ("simplified", "raw")])
def test_missing_files_are_named_with_the_command_that_fetches_them(folder, tmp_path, kept):
    """For each format without files, the page names what is missing and the command that fetches the files.

    If there are raw files, the page simplifies their strokes and does not name simplified files as missing. Bitmaps
    that were drawn from strokes are not missing, because the page has their sections. No picture of the page is empty.
    """
    for kind in set(MISSING) - set(kept):
        shutil.rmtree(folder / kind)
    page = page_of(explored(folder), tmp_path)
    available = {*kept, *(["simplified"] if "raw" in kept else [])}
    for kind, (sentence, command) in MISSING.items():
        assert (sentence in page) == (kind not in available and kind != "numpy_bitmap")
        assert (f"sketchbatch-train fetch {command} --folder {folder} --classes" in page) == (kind not in available)
    assert ("The bitmaps on this page were drawn from strokes" in page) == ("numpy_bitmap" not in kept)
    assert ("This page is incomplete." in page) == ("raw" not in kept)
    assert "<h2>Average drawings</h2>" in page
    assert ("Line by line" in page) == (kept != ("numpy_bitmap",))
    assert 'src=""' not in page
    assert "None" not in page
    assert "nan" not in re.sub(r'"data:[^"]*"', "", page)


@pytest.mark.parametrize("name", ["simplified", "raw", "numpy_bitmap"])
@pytest.mark.parametrize("is_inside", [False, True])
def test_files_are_fetched_next_to_the_folder_of_a_kind(folder, tmp_path, monkeypatch, name, is_inside):
    """If the explored folder is one of Google's folders, the other kinds belong into the folder above it."""
    explored_folder, above = folder / name, folder
    for other in set(MISSING) - {name}:
        shutil.rmtree(folder / other)
    if is_inside:
        monkeypatch.chdir(folder / name)
        explored_folder, above = Path(), folder.resolve()
    page = page_of(explored(explored_folder), tmp_path)
    assert f" --folder {above} --classes " in page
    assert f" --folder {explored_folder} " not in page
    assert f"Then explore the folder {above}." in page


def nearby(page):
    """Return the kinds that the page fetches, with their classes, and what it says about the folder above."""
    commands = re.findall(r"<pre>sketchbatch-train fetch --format (\S+) --folder \S+ --classes (\S+)</pre>", page)
    return dict(commands), re.findall(r"The folder \S+ has ([^:]*): explore it instead\.", page)


@pytest.mark.parametrize(
    ("name", "fetched", "there"),
    [
        ("simplified", {}, ["them", "them"]),  # raw files and bitmaps
        ("raw", {}, ["them"]),  # bitmaps, because raw files are simplified
        ("numpy_bitmap", {"simplified": "bee", "raw": "bee"}, ["those of ant", "those of ant"]),
    ],
)
def test_files_next_to_the_folder_of_a_kind_are_not_fetched(folder, tmp_path, name, fetched, there):
    """If the explored folder is one of Google's folders, the page names the folder above, which has other kinds.

    Only missing files are fetched: those of `bee`, which has bitmaps alone.
    """
    page = page_of(explored(folder / name), tmp_path)
    assert nearby(page) == (fetched, there)
    assert "Then explore the folder" not in page


def test_only_files_that_explore_reads_count_as_there(folder, tmp_path):
    """In Google's layout, `explore` reads no .jsonl file."""
    shutil.rmtree(folder / "simplified")
    (folder / "raw" / "ant.ndjson").rename(folder / "raw" / "ant.jsonl")
    page = page_of(explored(folder / "numpy_bitmap"), tmp_path)
    assert nearby(page) == ({"simplified": "ant,bee", "raw": "ant,bee"}, [])


def test_binary_files_of_googles_layout_are_explored(folder, tmp_path):
    """Files in binary/ have strokes without times; a class that is in simplified/, too, is read from there."""
    shutil.rmtree(folder / "raw")
    (folder / "binary").mkdir()
    for name in ("ant", "bee"):
        (folder / "binary" / f"{name}.bin").write_bytes(BINARY)
    ant, bee = explored(folder).classes
    assert (len(ant.simplified), len(bee.simplified)) == (4, 2)
    shutil.rmtree(folder / "simplified")
    assert [len(each.simplified) for each in explored(folder).classes] == [2, 2]
    assert nearby(page_of(explored(folder / "binary"), tmp_path))[1] == ["them"]


@pytest.mark.parametrize("layout", ["strokes", "pictures", "arrays of an own class"])
def test_nothing_is_missing_if_no_file_can_be_fetched(tmp_path, noise, layout):
    """Fetched files would make a folder in Google's layout, in which `explore` refuses strokes next to the folders.

    Google has no drawings of other classes.
    """
    own = tmp_path / "own"
    if layout == "strokes":
        own.mkdir()
        (own / "ant.ndjson").write_text(line(SIMPLE))
    elif layout == "pictures":
        (own / "ant").mkdir(parents=True)
        Image.fromarray(noise(1)[0]).save(own / "ant" / "a.png")
    else:
        write_bitmaps(own / "Bäume.npy", noise(3))
    page = page_of(explored(own), tmp_path)
    assert "sketchbatch-train fetch" not in page
    assert "This page is incomplete" not in page
    assert ("The bitmaps on this page were drawn from strokes" in page) == (layout == "strokes")


def test_only_classes_of_google_are_fetched(folder, tmp_path, noise):
    """The command names the classes that Google has; another class in the folder has no further files."""
    write_bitmaps(folder / "numpy_bitmap" / "Bäume.npy", noise(3))
    page = page_of(explored(folder), tmp_path)
    assert "There are no simplified files of bee and Bäume" in page
    assert re.search(r"--format simplified --folder \S+ --classes bee<", page)


def test_a_class_without_a_kind_of_file_is_named(folder, tmp_path):
    """If only some classes have files of a format, the page names the classes without files of this format."""
    page = page_of(explored(folder), tmp_path)
    assert "There are no simplified files of bee" in page
    assert "--format raw --folder" in page
    assert "There are no numpy_bitmap files" not in page
