"""Test that commands list what they pass over, and end with 3 if it may have drawings."""

import errno
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from kinds_of_files import LFS_POINTER
from onnx_models import LABELS
from pyarrow import parquet
from sketchbatch_client.drawings.folders import find_labelled
from sketchbatch_client.drawings.passed_over import PassedOver, PassedOverList, pass_over
from sketchbatch_client.drawings.readers import open_bitmaps
from sketchbatch_client.errors import FileChanged, FileRefused
from sketchbatch_client.evaluation import open_labelled
from sketchbatch_client.scoring.inputs import find_sources
from small_files import DRAWINGS, HEIC, LINE, npy, picture, table


def test_the_first_entries_are_listed_and_all_are_counted():
    """The list has the first thousand entries with drawings and without, whatever their order."""
    entries = [PassedOver(str(number), "hidden", number >= 1500) for number in range(3000)]
    passed_over = PassedOverList(entries)
    both = PassedOverList(entries[:1])
    both.add(passed_over)
    assert (passed_over.count, passed_over.count_with_drawings, len(passed_over.entries)) == (3000, 1500, 2000)
    assert (both.count, both.count_with_drawings, len(both.entries)) == (3001, 1500, 2000)
    assert passed_over.entries[0].path == "1500"
    assert passed_over.describe(2) == (
        "1,500 files or folders that may have drawings: 1500 (hidden), 1501 (hidden), and 1,498 more"
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write three drawings, a HEIC picture and a note."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in (("a.npy", npy(3)), ("b.heic", HEIC), ("notes.txt", b"notes")):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("output", ["o.csv", "-"])
def test_score_returns_3_for_files_that_may_have_drawings(sketchbatch, tiny_service, folder, tmp_path, output):
    """`score` scores the rest, names the files, and returns 0 if the user accepts this."""
    target = output if output == "-" else tmp_path / output
    arguments = ["score", folder, "--output", target, "--server", tiny_service.address]
    finished = sketchbatch(*arguments)
    assert finished.code == 3
    assert finished.err.splitlines()[-1] == (
        f"not read: 1 file or folder that may have drawings: {folder}/b.heic "
        "(a HEIC picture; save it as a PNG or JPEG); --ignore-others accepts this"
    )
    assert sketchbatch(*arguments, "--ignore-others").code == 0
    if output != "-":
        passed_over = json.loads((tmp_path / "o.csv.manifest.json").read_bytes())["passed_over"]
        assert (passed_over["count"], passed_over["with_drawings"]) == (2, 1)
        assert [Path(entry["path"]).name for entry in passed_over["entries"]] == ["b.heic", "notes.txt"]
        assert sketchbatch(*arguments).code == 3  # of a finished job, too


@pytest.mark.parametrize("is_one_job", [True, False])
def test_merge_returns_3_for_files_that_may_have_drawings(sketchbatch, tiny_service, folder, tmp_path, is_one_job):
    """`merge` names what the merged jobs did not read, unless each job, or the user of `merge`, accepts it."""
    outputs = []

    def score(number: int, *flags: str) -> int:
        inner, shard = folder, ["--shard", f"{number}/2"]
        if not is_one_job:
            inner, shard = tmp_path / str(number), []
            inner.mkdir(exist_ok=True)
            (inner / "a.npy").write_bytes(npy(3))
            (inner / "b.heic").write_bytes(HEIC)
        output = tmp_path / (f"o-0000{number}-of-00002.csv" if is_one_job else f"{number}.csv")
        given = tmp_path / "o.csv" if is_one_job else output
        outputs.append(output)
        return sketchbatch("score", inner, "--output", given, *shard, *flags, "--server", tiny_service.address).code

    def merged(*flags: str) -> tuple[int, str, dict[str, int]]:
        target = tmp_path / "all.csv"
        finished = sketchbatch("merge", *outputs[:2], "--output", target, *flags)
        found = json.loads(Path(f"{target}.manifest.json").read_bytes())
        counts = found["passed_over"]["with_drawings"], len(found["passed_over"]["entries"])
        assert counts == ((1, 2) if is_one_job else (2, 2))
        return finished.code, finished.err, found

    assert [score(0), score(1)] == [3, 3]
    code, text, found = merged()
    assert (code, found["ignores_others"]) == (3, False)
    number = "1 file or folder" if is_one_job else "2 files or folders"
    assert f"not read: {number} that may have drawings: " in text
    assert "b.heic (a HEIC picture" in text.splitlines()[-1]
    code, text, found = merged("--ignore-others")
    assert (code, found["ignores_others"], "not read" in text) == (0, True, False)
    assert [score(0, "--ignore-others"), merged()[0]] == [0, 3]  # the other one does not accept it
    assert [score(1, "--ignore-others"), merged()[0]] == [0, 0]
    assert [score(1), merged()[0]] == [3, 3]


def test_merge_accepts_nothing_for_the_user(sketchbatch, tiny_service, tmp_path):
    """If every file is read, the manifest does not say that the user accepts files which are not."""
    for name in "ab":
        (tmp_path / f"{name}.npy").write_bytes(npy(2))
        words = ("--server", tiny_service.address, "--output", tmp_path / f"{name}.csv")
        assert sketchbatch("score", tmp_path / f"{name}.npy", *words).code == 0
    assert sketchbatch("merge", tmp_path / "a.csv", tmp_path / "b.csv", "--output", tmp_path / "all.csv").code == 0
    assert json.loads((tmp_path / "all.csv.manifest.json").read_bytes())["ignores_others"] is False


def test_merge_returns_3_after_append(sketchbatch, tiny_service, folder, tmp_path):
    """An output of --append records, too, whether the user accepts what was not read."""
    for code, flags in ((3, []), (0, ["--ignore-others"])):
        (folder / f"{code}.npy").write_bytes(npy(3))
        arguments = ["score", folder, "--output", tmp_path / "o.csv", "--server", tiny_service.address, "--append"]
        assert sketchbatch(*arguments, *flags).code == code
        assert sketchbatch("merge", tmp_path / "o.csv", "--output", tmp_path / "all.csv").code == code


@pytest.mark.parametrize("flags", [["--append"], []])
def test_a_run_without_new_rows_records_what_is_not_read(sketchbatch, tiny_service, folder, tmp_path, flags):
    """The manifest and `merge` have the files of the last run, and whether the user accepts that they are not read."""
    (folder / "b.heic").unlink()
    arguments = ["score", folder, "--output", tmp_path / "o.csv", "--server", tiny_service.address, *flags]
    merge = ["merge", tmp_path / "o.csv", "--output", tmp_path / "all.csv"]
    assert [sketchbatch(*arguments).code, sketchbatch(*merge).code] == [0, 0]
    (folder / "c.heic").write_bytes(HEIC)
    assert [sketchbatch(*arguments).code, sketchbatch(*merge).code] == [3, 3]
    passed_over = json.loads((tmp_path / "o.csv.manifest.json").read_bytes())["passed_over"]
    assert [Path(entry["path"]).name for entry in passed_over["entries"]] == ["c.heic", "notes.txt"]
    assert [sketchbatch(*arguments, "--ignore-others").code, sketchbatch(*merge).code] == [0, 0]


@pytest.mark.parametrize(
    "damaged", [{"count": 1}, {"with_drawings": 0}, {"count": "2"}, {"entries": [{}]}, {"entries": [3]}, []]
)
def test_a_damaged_list_in_a_manifest_is_refused_in_one_line(sketchbatch, tiny_service, folder, tmp_path, damaged):
    """A manifest that another program has changed ends `merge` with the name of the manifest."""
    output = tmp_path / "o.csv"
    assert sketchbatch("score", folder, "--output", output, "--server", tiny_service.address).code == 3
    path = tmp_path / "o.csv.manifest.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps({**manifest, "passed_over": {**manifest["passed_over"], **damaged} if damaged else []}))
    finished = sketchbatch("merge", output, "--output", tmp_path / "all.csv")
    assert (finished.code, finished.err.count("\n")) == (4, 1), finished.err
    assert f"{path}: cannot be read: " in finished.err


def test_the_note_on_the_origin_is_listed_and_not_printed(sketchbatch, tiny_service, folder, tmp_path):
    """The manifest lists SOURCE.txt, which the trainer writes, but the terminal counts only other files."""
    (folder / "b.heic").rename(folder / "SOURCE.txt")
    arguments = ["score", folder, "--server", tiny_service.address, "--output"]
    finished = sketchbatch(*arguments, tmp_path / "o.csv")
    assert finished.code == 0
    assert "not read: 1 other file, folder or line; " in finished.err
    passed_over = json.loads((tmp_path / "o.csv.manifest.json").read_bytes())["passed_over"]
    assert [Path(entry["path"]).name for entry in passed_over["entries"]] == ["SOURCE.txt", "notes.txt"]
    (folder / "notes.txt").unlink()
    assert "not read" not in sketchbatch(*arguments, tmp_path / "p.csv").err


def test_evaluate_returns_3_for_files_that_may_have_drawings(sketchbatch, tiny_service, folder):
    """`evaluate` evaluates the rest, names the files, and returns 0 if the user accepts this."""
    (folder / "a.npy").rename(folder / "ant.npy")
    finished = sketchbatch("evaluate", folder, "--server", tiny_service.address)
    assert finished.code == 3
    assert "not read: 1 file or folder that may have drawings: " in finished.err
    assert sketchbatch("evaluate", folder, "--server", tiny_service.address, "--ignore-others").code == 0


def test_unreadable_keys_are_counted(sketchbatch, tiny_service, tmp_path):
    """A key that cannot be read is left empty, and the number of such rows is printed and in the manifest."""
    (tmp_path / "a.ndjson").write_bytes(LINE + LINE.replace(b"7", b"a-17"))
    table = {"bitmap": [bytes(784)] * 4, "key_id": ["7", "x", None, "-1"]}
    parquet.write_table(pa.table(table), tmp_path / "b.parquet")
    arguments = ["score", tmp_path, "--output", tmp_path / "o.csv", "--server", tiny_service.address]
    finished = sketchbatch(*arguments)
    assert finished.code == 0
    assert "3 rows with unreadable metadata, such as a key_id, which is left empty" in finished.err
    assert json.loads((tmp_path / "o.csv.manifest.json").read_bytes())["unread_metadata"] == 3
    keys = [line.split(",")[2] for line in (tmp_path / "o.csv").read_text().splitlines()]
    assert keys == ['"key_id"', "7", "", "7", "", "", ""]


def test_evaluate_reads_the_folders_of_spark(sketchbatch, tiny_service, tmp_path, noise):
    """A folder label=LABEL has the drawings of its label, in parts of any format; a bad row is named by its part."""
    for label in ("ant", "bee"):
        (tmp_path / f"label={label}" / "day=1").mkdir(parents=True)
        parquet.write_table(
            pa.table({"x": [row.tobytes() for row in noise(5)]}), tmp_path / f"label={label}" / "part-0.parquet"
        )
        np.save(tmp_path / f"label={label}" / "day=1" / "part-1.npy", noise(7))
    (tmp_path / "_SUCCESS").touch()
    arguments = ["evaluate", tmp_path, "--server", tiny_service.address, "--json", tmp_path / "m.json"]
    assert sketchbatch(*arguments).code == 0
    metrics = json.loads((tmp_path / "m.json").read_bytes())
    assert (metrics["rows"], metrics["per_class"]["ant"]["rows"]) == (24, 12)
    rows = open_bitmaps(tmp_path / "label=ant")
    expected = np.concatenate([noise(5), noise(7)])  # the files of a folder come before those of folders in it
    assert all(np.array_equal(rows[start : start + 4], expected[start : start + 4]) for start in range(12))

    part = tmp_path / "label=bee" / "part-0.parquet"
    parquet.write_table(pa.table({"x": [bytes(784), b"no drawing", bytes(784)]}), part)
    finished = sketchbatch(*arguments)
    assert finished.code == 4
    assert f"{part}: row 1: " in finished.err
    assert sketchbatch(*arguments, "--skip-malformed").code == 0
    skipping = open_labelled(tmp_path, LABELS, skip_malformed=True)
    assert (skipping.malformed_count, skipping.malformed[0][0]) == (1, part)
    assert skipping.origin(tmp_path / "label=bee", 1) == (part, 2)
    assert skipping.origin(tmp_path / "label=bee", 2) == (part.parent / "day=1" / "part-1.npy", 0)


def test_pictures_that_change_are_an_error(tmp_path):
    """`evaluate` and the trainer do not mix two versions of a folder of pictures."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture("png"))
    rows = open_bitmaps(tmp_path)
    assert len(rows[0:2]) == 2
    (tmp_path / "b.png").write_bytes(picture("png") + b"more")
    assert len(rows[0:1]) == 1
    with pytest.raises(FileChanged, match=r"b\.png: changed while it was read"):
        _ = rows[0:2]


@pytest.mark.parametrize("is_alone", [False, True])
def test_packed_lines_of_json_in_a_folder_are_read_if_they_are_drawings(tmp_path, is_alone):
    """As a .jsonl, a packed one may have metadata."""
    line = b'{"drawing": [[[0, 255], [0, 9]]]}\n'
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(3 * line))
    names = ["a.jsonl.gz"]
    if not is_alone:
        (tmp_path / "in" / "b.npy").write_bytes(npy(1))
        (tmp_path / "in" / "c.jsonl").write_bytes(line)
        (tmp_path / "in" / "c.jsonl.gz").write_bytes(gzip.compress(line))
        (tmp_path / "in" / "keys.jsonl.gz").write_bytes(gzip.compress(b'{"key": 1}\n'))
        names += ["b.npy", "c.jsonl"]
    passed_over = PassedOverList()
    sources = find_sources([str(tmp_path / "in")], tmp_path, lambda _: None, passed_over=passed_over)
    assert [Path(source.name).name for source in sources] == names
    assert [each.reason for each in passed_over.entries] == (
        [] if is_alone else ["the packed copy of c.jsonl", "JSON without drawings"]
    )


def test_packed_metadata_next_to_pictures_has_no_drawings(tmp_path):
    """As metadata.jsonl; in a folder that is not read, too."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    (tmp_path / "in" / "a.png").write_bytes(picture("png"))
    for folder in ("in", "in/more"):
        (tmp_path / folder / "metadata.jsonl.gz").write_bytes(gzip.compress(b'{"file": "a.png"}\n'))
    passed_over = PassedOverList()
    find_sources([str(tmp_path / "in")], tmp_path, lambda _: None, passed_over=passed_over)
    assert [(each.reason, each.may_have_drawings) for each in passed_over.entries] == [
        ("JSON without drawings", False),
        ("JSON without drawings", False),
    ]


def test_a_picture_with_a_manifest_of_another_program_is_read(tmp_path):
    """Only Parquet files and arrays with a manifest are outputs of jobs: no job writes pictures."""
    (tmp_path / "a.png").write_bytes(picture("png"))
    (tmp_path / "a.png.manifest.json").write_text("{}")
    [source] = find_sources([str(tmp_path)], tmp_path, lambda _: None)
    assert len(source) == 1


@pytest.mark.parametrize("layout", ["pictures", "one folder per label", "label=NAME"])
@pytest.mark.parametrize("ending", ["parquet", "npy"])
def test_outputs_of_jobs_are_no_drawings_and_no_labels(sketchbatch, tiny_service, tmp_path, layout, ending):
    """A job whose OUTPUT is in the folder that it scores can be repeated, and the folder can be evaluated."""
    folder = tmp_path / "in"
    inner = {"pictures": ".", "one folder per label": "ant", "label=NAME": "label=ant"}[layout]
    (folder / inner).mkdir(parents=True)
    name, content = ("0.npy", npy(1)) if layout == "label=NAME" else ("0.png", picture("png"))
    (folder / inner / name).write_bytes(content)
    for output in (folder / f"labels.{ending}", folder / inner / f"inner.{ending}"):
        words = ["score", folder, "--output", output, "--server", tiny_service.address]
        assert sketchbatch(*words).code == 0
        assert json.loads(Path(f"{output}.manifest.json").read_bytes())["passed_over"]["with_drawings"] == 0
        finished = sketchbatch(*words)
        assert (finished.code, "is already finished: 1 row from 1 input" in finished.err) == (0, True), finished.err
    listed = json.loads(Path(f"{folder}/labels.{ending}.manifest.json").read_bytes())["passed_over"]
    assert listed["count"] == len(listed["entries"])
    if layout != "pictures":
        assert list(find_labelled(folder).files) == ["ant"]


def test_the_folder_of_an_unfinished_job_is_not_counted(sketchbatch, tiny_service, tmp_path):
    """While a job runs, the folder of its parts lies in the folder that it scores; it is no file of the user."""
    (tmp_path / "0.png").write_bytes(picture("png"))
    output = tmp_path / "s.csv"
    assert sketchbatch("score", tmp_path, "--output", output, "--server", tiny_service.address).code == 0
    assert json.loads(Path(f"{output}.manifest.json").read_bytes())["passed_over"]["count"] == 0


def test_the_packed_copy_of_a_file_with_a_label_is_passed_over(tmp_path):
    """A packed file next to its unpacked copy is no unread drawing; alone it is one, which must be unpacked."""
    (tmp_path / "ant.ndjson").write_bytes(DRAWINGS[".ndjson"])
    for name in ("ant", "bee"):
        (tmp_path / f"{name}.ndjson.gz").write_bytes(gzip.compress(DRAWINGS[".ndjson"]))
    entries = {Path(entry.path).name: entry for entry in find_labelled(tmp_path).passed_over.entries}
    assert entries["ant.ndjson.gz"][1:] == ("the packed copy of ant.ndjson", False)
    assert entries["bee.ndjson.gz"].may_have_drawings
    assert "unpack it" in entries["bee.ndjson.gz"].reason


def test_a_picture_that_cannot_be_read_is_a_reject_whatever_its_name(sketchbatch, tiny_service, tmp_path):
    """A broken link, and a damaged picture whose name is not UTF-8, are rejects, and the other pictures are scored."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "0.png").write_bytes(picture("png"))
    (folder / "gone.png").symlink_to("nowhere.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe4.png")).write_bytes(b"x")
    words = ["score", folder, "--output", tmp_path / "o.csv", "--append", "--server", tiny_service.address]
    finished = sketchbatch(*words)
    assert finished.code == 3, finished.err
    rejects = [json.loads(line) for line in Path(f"{tmp_path}/o.csv.rejects.jsonl").read_text().splitlines()]
    assert [reject["source"] for reject in rejects] == [f"{folder}/gone.png", f"{folder}/\\xe4.png"]
    assert rejects[0]["reason"] == f"{folder}/gone.png: No such file or directory"
    assert rejects[1]["reason"].startswith(f"{folder}/\\xe4.png: expected a picture")
    (folder / "nowhere.png").write_bytes(picture("png"))
    (folder / "nowhere.png").rename(tmp_path / "elsewhere.png")
    (folder / "gone.png").unlink()
    (folder / "gone.png").symlink_to(tmp_path / "elsewhere.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe4.png")).write_bytes(picture("png"))
    finished = sketchbatch(*words)
    assert (finished.code, "o.csv has 3 rows" in finished.err) == (0, True), finished.err
    assert not Path(f"{tmp_path}/o.csv.rejects.jsonl").exists()


def test_a_folder_that_cannot_be_read_ends_the_command(tmp_path):
    """A folder without permission is an error, rather than a folder without drawings."""
    for inner in ("label=cat/a", "label=cat/b"):
        (tmp_path / inner).mkdir(parents=True)
        (tmp_path / inner / "part.npy").write_bytes(npy(1))
    closed = tmp_path / "label=cat" / "b"
    scandir = os.scandir

    def denied(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        with pytest.raises(PermissionError, match=str(closed)):
            find_sources([str(tmp_path)], tmp_path, lambda _: None)
        assert pass_over(tmp_path / "label=cat").may_have_drawings


def test_a_table_that_spark_wrote_is_a_folder(tmp_path):
    """Spark writes a table cat.parquet as a folder of parts; `evaluate` takes it as the label cat."""
    (tmp_path / "cat.parquet").mkdir()
    (tmp_path / "cat.parquet" / "part-0.parquet").write_bytes(table(3))
    (tmp_path / "cat.parquet" / "_SUCCESS").touch()
    [source] = find_sources([str(tmp_path)], tmp_path, lambda _: None)
    assert len(source) == 3
    assert {label: len(open_bitmaps(path)) for label, path in find_labelled(tmp_path).files.items()} == {"cat": 3}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cat.csv", b"label,pixel0,pixel1\n", "cat.csv (a table; docs/bulk-scoring.md shows how to convert it)"),
        ("cat.csv", b"countrycode,drawing,key_id\n", "cat.csv (a table; docs/bulk-scoring.md shows how to convert it)"),
        ("cat.csv", b"5," + b"0," * 783 + b"255\n", "cat.csv (a table; docs/bulk-scoring.md shows how to convert it)"),
        ("cat.tsv", b"0\t" * 784, "cat.tsv (a table; docs/bulk-scoring.md shows how to convert it)"),
        ("mnist.csv", b"label,1x1,1x2,1x3," * 30, "mnist.csv (a table; docs/bulk-scoring.md shows how to convert it)"),
        ("mnist.csv", b"label;p0;p1;p2;" * 40, "mnist.csv (a table; docs/bulk-scoring.md shows how to convert it)"),
        ("cat.ndjson.gz", gzip.compress(LINE, mtime=0), "cat.ndjson.gz (a gzip file; unpack it"),
        ("t10k.idx3-ubyte", bytes((0, 0, 8, 3)) + bytes(12), "t10k.idx3-ubyte (an IDX file"),
        ("cat.heic", HEIC, "cat.heic (a HEIC picture"),
    ],
)
def test_a_folder_of_files_that_cannot_be_read_names_them(sketchbatch, tiny_service, tmp_path, name, content, message):
    """If a folder has no drawing that is read, the error names files that may have drawings, and what to do."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").touch()
    finished = sketchbatch("evaluate", tmp_path, "--server", tiny_service.address)
    assert (finished.code, finished.err.count("\n")) == (4, 1)
    assert f"not read: 1 file or folder that may have drawings: {tmp_path}/{message}" in finished.err


def test_a_folder_with_drawings_next_to_files_is_named_with_the_way_to_add_it(sketchbatch, tiny_service, tmp_path):
    """The line on stderr has the path to add; the folder in which the job stores its parts is not counted."""
    folder = tmp_path / "in"
    (folder / "nested").mkdir(parents=True)
    (folder / "a.npy").write_bytes(npy(3))
    (folder / "nested" / "b.npy").write_bytes(npy(2))
    words = ("--server", tiny_service.address, "--output", folder / "o.csv")
    finished = sketchbatch("score", folder, *words)
    assert finished.code == 3
    assert (
        f"nested (a folder with drawings, such as nested/b.npy, is not searched; add '{folder}/nested')" in finished.err
    )
    manifest = json.loads((folder / "o.csv.manifest.json").read_text())
    assert [entry["path"] for entry in manifest["passed_over"]["entries"]] == [f"{folder}/nested"]
    assert sketchbatch("score", folder, folder / "nested", *words, "--restart").code == 0


@pytest.mark.parametrize(
    ("name", "content"), [("z.ndjson", b""), ("z.jsonl", b""), ("z.npy", npy(0)), ("z.parquet", table(0))]
)
def test_a_file_without_a_drawing_is_listed(sketchbatch, tiny_service, tmp_path, name, content):
    """Next to other files it is listed as passed over, whether it is named or in a folder."""
    (tmp_path / "a.npy").write_bytes(npy(3))
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "o.csv"
    named = sketchbatch(
        "score", tmp_path / "a.npy", tmp_path / name, "--server", tiny_service.address, "--output", output
    )
    assert named.code == 0, named.err
    assert "3 rows from 1 input in" in named.err
    listed = json.loads((tmp_path / "o.csv.manifest.json").read_text())["passed_over"]["entries"]
    assert [(entry["path"], entry["reason"]) for entry in listed] == [(str(tmp_path / name), "has no drawing")]
    grown = tmp_path / "grown.csv"
    for _ in range(2):
        words = ("--server", tiny_service.address, "--output", grown, "--append")
        assert sketchbatch("score", tmp_path / "a.npy", tmp_path / name, *words).code == 0
        passed_over = json.loads((tmp_path / "grown.csv.manifest.json").read_text())["passed_over"]
        assert [entry["reason"] for entry in passed_over["entries"]] == ["has no drawing"]


def test_pictures_directly_in_the_folder_to_evaluate_are_refused_with_the_layout(sketchbatch, tiny_service, tmp_path):
    """The label of such pictures would be the name of the folder, which is rarely meant."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(picture("png"))
    finished = sketchbatch("evaluate", tmp_path / "new", "--server", tiny_service.address)
    assert finished.code == 4
    assert "got new; the label of these pictures is the name of their folder: give each label a folder" in finished.err


@pytest.mark.parametrize("given", ["runs", "runs/one"])
def test_the_folder_of_a_training_names_its_held_out_drawings(tmp_path, given):
    """A new user evaluates the run, which has the drawings of the test in an inner folder."""
    (tmp_path / "runs" / "one" / "test").mkdir(parents=True)
    for name in ("test/cat.npy", "calibration.npy"):
        (tmp_path / "runs" / "one" / name).write_bytes(npy(1))
    config = {"labels": ["cat", "dog"], "data_digest": "00", "hold_out": "none"}
    (tmp_path / "runs" / "one" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileRefused) as refused:  # its test/ has the training drawings
        open_labelled(tmp_path / given, ["dog", "owl"], owner="m of localhost:1")
    assert "held-out" not in str(refused.value)
    (tmp_path / "runs" / "one" / "config.json").write_text(json.dumps(config | {"hold_out": "1/5"}))
    with pytest.raises(FileRefused, match=r"held-out drawings .*runs/one/test$"):
        open_labelled(tmp_path / given, ["cat", "dog"], owner="m of localhost:1")


def test_an_array_of_a_packed_archive_is_listed_by_the_name_of_its_input(tmp_path):
    """The archive is unpacked to a temporary file, whose name means nothing to a user."""
    archive = io.BytesIO()
    np.savez(archive, drawings=np.zeros((1, 28, 28), np.uint8), labels=np.zeros(1))
    (tmp_path / "a.npz.gz").write_bytes(gzip.compress(archive.getvalue()))
    passed_over = PassedOverList()
    [source] = find_sources([str(tmp_path / "a.npz.gz")], tmp_path, lambda _: None, passed_over=passed_over)
    assert source.name == f"{tmp_path}/a.npz.gz:drawings"
    assert [each.path for each in passed_over.entries] == [f"{tmp_path}/a.npz.gz:labels"]


@pytest.mark.parametrize("inner", ["cat/0.png", "cat.npy"])
def test_a_folder_above_the_labels_names_the_folders_with_drawings(tmp_path, inner):
    """A data set is often split into train/ and test/: the error says to name one of them."""
    for split in ("test", "train"):
        (tmp_path / split / inner).parent.mkdir(parents=True)
        (tmp_path / split / inner).write_bytes(DRAWINGS[Path(inner).suffix])
    with pytest.raises(FileRefused, match="there are drawings in test/, train/: name one of these folders"):
        find_labelled(tmp_path)


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (
            ["truth=bear", "truth=cat"],
            r"truth=bear/, truth=cat/: name one of these folders; or, if truth is the label, rename each to "
            r"label=VALUE/, or write the column as label$",
        ),
        (["bear", "cat"], "bear/, cat/: name one .*; or, if their names are the labels, rename each to label=NAME/$"),
        (["bear", "owl"], "bear/, owl/: name one of these folders$"),
        (["label=bear", "label=cat"], "label=bear/, label=cat/: name one of these folders$"),
        (["truth=bear", "test"], "test/, truth=bear/: name one of these folders$"),
        (["truth=bear", "day=1"], "day=1/, truth=bear/: name one of these folders$"),
    ],
)
def test_a_label_column_of_another_name_is_explained(tmp_path, names, advice):
    """Spark and Hive write a folder for each value of a column: only a column `label` has the labels."""
    for name in names:
        (tmp_path / name).mkdir()
        if name.startswith("label=") or name == "owl":  # a format that is not read by labels
            np.savez(tmp_path / name / "part-0.npz", np.zeros((1, 784), np.uint8))
        else:
            (tmp_path / name / "part-0.npy").write_bytes(DRAWINGS[".npy"])
    with pytest.raises(FileRefused, match=advice):
        find_labelled(tmp_path)


@pytest.mark.parametrize("content", [LFS_POINTER, b"\x08\x07\x12\x04tf2o"])
def test_the_name_of_a_picture_counts_whatever_its_first_bytes_look_like(tmp_path, content):
    """A picture that Git has not fetched yet, or is damaged, is not taken for a file without drawings."""
    (tmp_path / "a.heic").write_bytes(content)
    assert pass_over(tmp_path / "a.heic").may_have_drawings
    (tmp_path / "a.bin2").write_bytes(content)
    assert not pass_over(tmp_path / "a.bin2").may_have_drawings


def test_a_folder_that_is_an_input_of_its_own_is_not_passed_over(sketchbatch, tiny_service, tmp_path):
    """`score in in/png` reads the pictures of in/png, and does not report that folder as not read."""
    (tmp_path / "in" / "png").mkdir(parents=True)
    (tmp_path / "in" / "ant.npy").write_bytes(DRAWINGS[".npy"])
    (tmp_path / "in" / "png" / "0.png").write_bytes(DRAWINGS[".png"])
    inputs = [tmp_path / "in", tmp_path / "in" / "png"]
    output = tmp_path / "o.csv"
    finished = sketchbatch("score", *inputs, "--output", output, "--server", tiny_service.address)
    assert (finished.code, "png" in finished.err) == (0, False), finished.err
    manifest = json.loads((tmp_path / "o.csv.manifest.json").read_text())
    assert manifest["passed_over"]["count"] == 0
    address = tiny_service.address
    pattern = tmp_path / "in" / "*" / "*.png"  # names the pictures, and not their folder
    finished = sketchbatch("score", inputs[0], pattern, "--output", tmp_path / "g.csv", "--server", address)
    assert (finished.code, "png (" in finished.err) == (0, False), finished.err
    (tmp_path / "in" / "png" / "other.png").write_bytes(DRAWINGS[".png"])  # the next pattern leaves it out
    some = tmp_path / "in" / "*" / "0.png"
    finished = sketchbatch("score", inputs[0], some, "--output", tmp_path / "s.csv", "--server", address)
    assert (finished.code, f"{inputs[1]} (a folder with drawings" in finished.err) == (3, True), finished.err
    (tmp_path / "in" / "png" / "other.png").unlink()
    (tmp_path / "in" / "1.png").write_bytes(DRAWINGS[".png"])
    loose = tmp_path / "in" / "*.png"
    finished = sketchbatch("score", inputs[0], pattern, loose, "--output", tmp_path / "b.csv", "--server", address)
    assert (finished.code, "png (" in finished.err) == (0, False), finished.err
    (tmp_path / "in" / "1.png").unlink()
    alone = sketchbatch("score", inputs[0], "--output", tmp_path / "p.csv", "--server", tiny_service.address)
    assert alone.code == 3
    assert f"{inputs[1]} (a folder with drawings" in alone.err


def test_files_that_macos_and_windows_add_are_passed_over_in_silence(sketchbatch, tiny_service, tmp_path):
    """Folders from macOS or Windows have files that are no drawings, whatever their names are."""
    (tmp_path / "in" / "__MACOSX").mkdir(parents=True)
    for name in ("__MACOSX/._ant.npy", "._ant.npy", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "in" / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "in" / "ant.npy").write_bytes(npy(3))
    for words in (["score", tmp_path / "in", "--output", tmp_path / "o.csv"], ["evaluate", tmp_path / "in"]):
        finished = sketchbatch(*words, "--server", tiny_service.address)
        assert (finished.code, "may have drawings" in finished.err) == (0, False), finished.err
    passed_over = json.loads((tmp_path / "o.csv.manifest.json").read_bytes())["passed_over"]
    assert (passed_over["count"], passed_over["with_drawings"]) == (5, 0)


def test_a_long_name_next_to_drawings_is_no_error(tmp_path):
    """Names of up to 255 bytes leave no room for the ending of a manifest."""
    (tmp_path / "a.npy").write_bytes(npy(1))
    (tmp_path / f"{'x' * 245}.txt").write_text("notes")
    passed_over = PassedOverList()
    assert len(find_sources([str(tmp_path)], tmp_path, lambda _: None, passed_over=passed_over)) == 1
    assert passed_over.count == 1


def test_an_output_with_parts_is_no_input(tmp_path):
    """After an interrupted --restart, OUTPUT has no manifest, but its parts."""
    (tmp_path / "a.npy").write_bytes(npy(1))
    (tmp_path / "scores.parquet").write_bytes(table(1))
    (tmp_path / "scores.parquet.parts").mkdir()
    assert [source.name for source in find_sources([str(tmp_path)], tmp_path, lambda _: None)] == [f"{tmp_path}/a.npy"]


def test_a_label_with_a_space_is_that_of_its_folder(tmp_path):
    """Spark, Hive and pandas encode spaces and other characters in the names of folders as in a URL."""
    for name in ("label=alarm%20clock", "label=d%C3%B6g", "label=100%"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part-0.npy").write_bytes(DRAWINGS[".npy"])
    assert sorted(find_labelled(tmp_path).files) == ["100%", "alarm clock", "dög"]
