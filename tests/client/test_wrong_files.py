"""Test what the commands say about files that are not what their names say."""

import errno
import gzip
import io
import os
import re
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from kinds_of_files import KINDS, LFS_POINTER, WEB_PAGE, ZIP
from PIL import Image
from sketchbatch_client.drawings.images import decode_image
from sketchbatch_client.drawings.passed_over import DRAWING_SUFFIXES
from sketchbatch_client.drawings.readers import PICTURE_SUFFIXES, PICTURES, open_bitmaps
from sketchbatch_client.errors import FileRefused, fails_again
from sketchbatch_client.file_kind import describe
from sketchbatch_client.scoring.inputs import find_sources, opening

WRONG = {
    "a git LFS pointer; run `git lfs pull`": LFS_POINTER,
    "a web page; copy or download it again": WEB_PAGE,
    "a zip archive; unpack it": ZIP,
    "an empty file; copy or download it again": b"",
}
SUFFIXES = (".npy", ".ndjson", ".parquet", ".png", ".bin", ".npz", ".onnx")
CRYPTIC = re.compile(r"0x[0-9a-f]+|None|BytesIO|b'|\\x|[Mm]agic|codec|[Ee]rrno|zip file")


@pytest.fixture
def run(sketchbatch, start_server, servicer, monkeypatch):
    """Return a function that runs a command with a service, and returns its only line on standard error."""
    address = start_server(servicer)

    def run(*words, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        ended = sketchbatch(*words, "--server", address)
        assert ended.code == 4
        assert ended.err.count("\n") == 1
        return ended.err

    return run


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", WRONG)
def test_score_says_what_a_file_is(run, tmp_path, kind, suffix):
    """`score` says what a file is, and what to do, if its name says something else."""
    path = tmp_path / f"cat{suffix}"
    path.write_bytes(WRONG[kind])
    said = run("score", path, "--output", tmp_path / "o.csv")
    if not WRONG[kind] and suffix in (".ndjson", ".bin"):
        kind = "expected drawings, got no row"  # a file of no lines is a file of strokes
    assert kind in said
    assert f"{path}: expected " in said
    assert not CRYPTIC.search(said.replace(str(path), ""))


@pytest.mark.parametrize("suffix", [".npy", ".ndjson", ".bin", ".png"])
@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("flags", [(), ("--skip-malformed",)], ids=["strict", "tolerant"])
def test_evaluate_says_what_a_file_is(run, tmp_path, kind, suffix, flags):
    """`evaluate` says what a file is, also if it skips malformed lines."""
    folder = tmp_path / "drawings"
    path = folder / "a" / "1.png" if suffix == ".png" else folder / f"a{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(WRONG[kind])
    said = run("evaluate", folder, *flags)
    is_skipped = flags and suffix == ".png"  # a picture is a drawing, which can be skipped
    if is_skipped or (not WRONG[kind] and suffix in (".ndjson", ".bin")):
        assert "expected drawings, got none for a" in said
    else:
        assert kind in said
        assert f"{path}: expected " in said
    assert not CRYPTIC.search(said)


@pytest.mark.parametrize("kind", WRONG)
def test_score_says_what_standard_input_is(run, tmp_path, kind):
    """`score -` says what standard input is."""
    said = run("score", "-", "--output", tmp_path / "o.csv", stdin=WRONG[kind])
    assert f"standard input: expected .npy, .npz, .ndjson or .parquet, got {kind}" in said
    assert not CRYPTIC.search(said)


@pytest.mark.parametrize("suffix", [".npy", ".ndjson", ".parquet", ".bin", ".npz"])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "an empty file"])
def test_every_kind_is_named_by_every_reader(tmp_path, name, suffix):
    """Every reader names every kind of file but its own."""
    path = tmp_path / f"cat{suffix}"
    path.write_bytes(KINDS[name])
    is_own = describe(KINDS[name]).suffix == suffix
    with pytest.raises(FileRefused) as caught:
        find_sources([str(path)], tmp_path, lambda path: None)
    assert (f"{path}: expected " in str(caught.value) and f"got {name}" in str(caught.value)) != is_own


@pytest.mark.parametrize("name", [name for name in KINDS if describe(KINDS[name]).suffix not in PICTURE_SUFFIXES])
def test_every_kind_is_named_by_the_reader_of_pictures(name):
    """The reader of pictures names every kind of file but its own, whether in a file or in a column of Parquet."""
    with pytest.raises(FileRefused, match=r"^cat\.png: expected a picture \(PNG, .*\), got ") as caught:
        decode_image(KINDS[name], "cat.png")
    assert f"got {name}" in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "contents", "got"),
    [
        (".csv", b"countrycode,word\n", "'.csv'; docs/bulk-scoring.md shows how to convert it"),
        (".txt", b"cat", "'.txt'"),
        (".json", b'{"drawing": []}\n', "JSON; `sketchbatch score` reads drawings, one per line, under the ending"),
        (".tar.gz", KINDS["a gzip file"], "a gzip file; unpack it: `gzip -dc "),
        (".tgz", KINDS["a gzip file"], "a gzip file; unpack it: `gzip -dc "),
        (".png.gz", KINDS["a gzip file"], "a gzip file; unpack it: `gzip -dc "),
        (".gz", KINDS["a gzip file"], "a gzip file; unpack it, or run `gzip -dc "),
        (".heic", KINDS["a HEIC picture"], "a HEIC picture; save it as a PNG or JPEG"),
        (".pkl", KINDS["a Python pickle"], "a Python pickle; save its drawings as a .npy"),
        (".idx3-ubyte", KINDS["an IDX file"], "an IDX file, as MNIST has them; "),
        (".mat", KINDS["a MATLAB file"], "a MATLAB file; "),
        ("", b"cat", "''"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith(".") else "",
)
def test_an_unknown_ending_is_refused_by_the_list_of_endings(run, tmp_path, suffix, contents, got):
    """A file of an unknown ending is not tried as .npy: the message lists the endings, and what the file is."""
    path = tmp_path / f"cat{suffix}"
    path.write_bytes(contents)
    said = run("score", path, "--output", tmp_path / "o.csv")
    assert f"{path}: expected .npy, .npz, .ndjson, .jsonl, .bin, .parquet or {PICTURES}; got {got}" in said


def test_a_packed_file_comes_with_the_pipe_that_works(run, tmp_path):
    """The message about a packed file has the command that scores it."""
    path = tmp_path / "cat.zst"
    path.write_bytes(KINDS["a Zstandard file"])
    said = run("score", path, "--output", tmp_path / "o.csv")
    assert f"unpack it, or run `zstd -dc {path} | sketchbatch score -`" in said


@pytest.mark.parametrize("cut", [20, 60, 100])
def test_a_cut_picture_is_refused_without_pillows_words(run, tmp_path, cut):
    """A picture that is cut off is called damaged, and no address of an object is printed."""
    path = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 50), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    said = run("score", path, "--output", tmp_path / "o.csv")
    assert "damaged or cut off; copy or download it again" in said
    assert not CRYPTIC.search(said)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".ndjson"])
def test_a_damaged_file_on_standard_input_is_not_named_by_its_copy(run, tmp_path, suffix):
    """Messages about standard input say so, and do not name the copy in a temporary folder."""
    array = io.BytesIO()
    (np.savez if suffix == ".npz" else np.save)(array, np.zeros((3, 784), np.uint8))
    contents = {".parquet": b"PAR1 cut off", ".ndjson": b'{"drawing": 1}\n'}.get(suffix, array.getvalue()[:-9])
    said = run("score", "-", "--output", tmp_path / "o.csv", stdin=contents)
    assert said.startswith("sketchbatch: standard input:")
    assert "stdin." not in said


def test_a_pipe_among_pictures_is_rejected(tmp_path):
    """A named pipe in a folder of pictures is a reject, or stops the evaluation, and is not waited for."""
    os.mkfifo(tmp_path / "a.png")
    [source] = find_sources([str(tmp_path)], tmp_path, lambda path: None)
    [reject] = source.block(0, 1).rejects
    assert "expected a file, got a pipe or device" in reject.reason
    with pytest.raises(FileRefused, match="expected a file, got a pipe or device"):
        open_bitmaps(tmp_path)[:1]
    assert open_bitmaps(tmp_path, skip_malformed=True).malformed_count == 1


@pytest.mark.parametrize("name", ["cat", "CAT.NPY"])
def test_a_file_without_an_ending_or_in_capitals_is_read(tmp_path, name):
    """The first bytes tell the format of a file without an ending, and the case of an ending does not matter."""
    with (tmp_path / name).open("wb") as file:
        np.save(file, np.zeros((3, 784), np.uint8))
    [source] = find_sources([str(tmp_path / name)], tmp_path, lambda path: None)
    assert len(source) == 3


def test_a_record_that_begins_like_another_kind_is_read(tmp_path):
    """The key of a drawing, with which a .bin begins, can have the bytes of a signature."""
    key = struct.unpack("<Q", b"PK\x03\x04\x14\x00\x00\x00")[0]
    record = struct.pack("<Q2sbIHH", key, b"SE", 1, 1_500_000_000, 1, 2) + bytes([0, 255, 0, 255])
    (tmp_path / "cat.bin").write_bytes(record * 2)
    assert describe(record).name == "a zip archive"
    assert len(open_bitmaps(tmp_path / "cat.bin")) == 2


@pytest.mark.parametrize("suffix", [*DRAWING_SUFFIXES, ".png", ".ndjson.gz"])
def test_a_pipe_is_refused_with_the_way_that_works(run, tmp_path, suffix):
    """A named pipe is refused at once instead of waiting for its writer, and `None` is not given as a reason."""
    path = tmp_path / f"cat{suffix}"
    os.mkfifo(path)
    said = run("score", path, "--output", tmp_path / "o.csv")
    way = f", or score it with `sketchbatch score - < {path}`"
    if suffix in (".bin", ".png", ".ndjson.gz"):  # standard input does not tell these formats
        way = "\n"
    assert f"{path}: expected a file, got a pipe or device; copy its contents to a file{way}" in f"{said}\n"


@pytest.mark.parametrize("suffix", [*DRAWING_SUFFIXES, ".png"])
def test_a_broken_link_is_refused_alone_and_in_a_folder(run, tmp_path, suffix):
    """A link that leads nowhere is an input that is missing, and not a file without drawings."""
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "a.npy", np.zeros((3, 784), np.uint8))
    (folder / f"b{suffix}").symlink_to("nowhere")
    reason = "No such file or directory" if suffix == ".png" else "cannot be read: a link that leads to no file"
    assert f"b{suffix}: {reason}" in run("score", folder / f"b{suffix}", "--output", tmp_path / "o.csv")
    if suffix == ".npy":
        assert f"b{suffix}: cannot be read: " in run("score", folder, "--output", tmp_path / "o.csv")


def test_all_damaged_inputs_are_named_at_once(run, tmp_path):
    """A user who repairs a folder learns of its damaged files in one run; of many, the first 25 are named."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "bdf":
        (folder / f"{name}.npy").write_bytes(b"no array")
        np.save(folder / f"{name}2.npy", np.zeros((3, 784), np.uint8))
    said = run("score", folder, "--output", tmp_path / "o.csv")
    assert f"3 inputs cannot be read: (1) {folder}/b.npy: expected a .npy file, got " in said
    assert f"; (2) {folder}/d.npy: " in said
    assert f"; (3) {folder}/f.npy: " in said
    (tmp_path / "empty").mkdir()
    said = run("score", folder / "b.npy", tmp_path / "empty", tmp_path / "no*.npy", "--output", tmp_path / "o.csv")
    assert f"{tmp_path}/no*.npy: no file matches" in said
    said = run("score", folder / "b.npy", tmp_path / "empty", "--output", tmp_path / "o.csv")
    assert f"2 inputs cannot be read: (1) {tmp_path}/empty: expected drawings, got an empty folder" in said
    assert f"; (2) {folder}/b.npy: " in said
    for name in range(24):
        (folder / f"{name}.npz").write_bytes(b"no archive")
    said = run("score", folder, "--output", tmp_path / "o.csv")
    assert "27 inputs cannot be read: (1) " in said
    assert "; (25) " in said
    assert "; and 2 more" in said


def test_after_a_damaged_input_nothing_is_copied_and_nothing_waits(tmp_path, monkeypatch):
    """Standard input, pipes and packed files are not read once an input is refused; a failing disk ends the search."""
    opened = []
    (tmp_path / "b.npy.gz").write_bytes(gzip.compress(b"no array"))
    monkeypatch.setattr(sys, "stdin", None)  # reading it would fail
    with pytest.raises(FileRefused, match=r"^[^;]*a\.npy: cannot be read: no such file$"):
        find_sources([str(tmp_path / "a.npy"), "-", str(tmp_path / "b.npy.gz")], tmp_path, opened.append)
    assert opened == [str(tmp_path / "a.npy")]

    def fail(path, scale):
        opened.append(path)
        raise FileRefused(f"{path}: timed out") from OSError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(opening, "read_bitmaps", fail)
    for name in ("c.npy", "d.npy"):
        np.save(tmp_path / name, np.zeros((3, 784), np.uint8))
    opened.clear()
    with pytest.raises(FileRefused, match=r"c\.npy: timed out$") as refused:
        find_sources([str(tmp_path / name) for name in ("a.npy", "c.npy", "d.npy")], tmp_path, lambda _: None)
    assert not fails_again(refused.value)
    assert opened == [tmp_path / "c.npy"]


@pytest.mark.parametrize("suffix", [*DRAWING_SUFFIXES, "", ".npy.gz", ".npy.bz2", ".npy.zst"])
def test_a_file_without_the_right_to_read_is_named(suffix):
    """The message has the path and the reason, also for the readers of libraries."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders belong to one user
        Path(folder).chmod(0o755)
        path, user = Path(folder) / f"a{suffix}", os.geteuid()
        path.write_bytes(b"contents")
        path.chmod(0)
        try:
            if user == 0:
                os.seteuid(65532)
            with pytest.raises(FileRefused, match=rf"^{path}: cannot be .*: Permission denied$"):
                find_sources([str(path)], Path(folder), lambda path: None)
        finally:
            os.seteuid(user)


def test_a_file_without_rows_next_to_others_is_no_error(tmp_path):
    """A class without drawings has a file without rows."""
    np.save(tmp_path / "a.npy", np.zeros((0, 784), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((3, 784), np.uint8))
    assert [len(source) for source in find_sources([str(tmp_path)], tmp_path, lambda path: None)] == [0, 3]
