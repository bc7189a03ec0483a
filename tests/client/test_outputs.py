"""An output never destroys an input or a file that Sketchbatch did not write; streams are written, URLs refused."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sketchbatch_client.errors import DiskFull
from sketchbatch_client.scoring.manifest import Manifest
from sketchbatch_client.scoring.parts import Parts

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def drawings(tmp_path, noise):
    """Write drawings of two labels into a folder."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    for label in ("ant", "bee"):
        np.save(folder / f"{label}.npy", noise(3).reshape(3, 784))
    return folder


@pytest.fixture
def command(sketchbatch, tiny_service):
    """Return a function that runs a `sketchbatch` command in this process, with the tiny service as its server."""
    return lambda name, *words: sketchbatch(name, *words, "--server", tiny_service.address)


@pytest.fixture
def refused(command):
    """Return a function that runs a command, which must end with code 4 and one line; the line is returned."""

    def run(*words: object) -> str:
        finished = command(*words)
        assert (finished.code, finished.out, finished.err.count("\n")) == (4, "", 1), finished.err
        return finished.err

    return run


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the bytes of all regular files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("ant.npy", "ant.npy"),
        ("ant.npy", "link.npy"),
        ("ant.npy", "same.npy"),
        ("link.npy", "ant.npy"),
        (".", "ant.npy"),
        ("*.npy", "bee.npy"),
        ("o.csv.rejects.jsonl", "o.csv"),
        ("pictures", "pictures/a.png"),
    ],
)
def test_an_output_is_never_an_input(refused, drawings, given, output):
    """An output that is the same file as an input is refused, whatever leads to the file, also with --restart."""
    (drawings / "link.npy").symlink_to("ant.npy")
    (drawings / "same.npy").hardlink_to(drawings / "ant.npy")
    (drawings / "o.csv.rejects.jsonl").write_text('{"drawing": [[[0, 255], [0, 255]]]}\n')
    (drawings / "pictures").mkdir()
    Image.fromarray(np.diag(np.full(28, 255, np.uint8))).save(drawings / "pictures" / "a.png")
    before = contents(drawings)
    words = ["score", drawings / given, "--output", drawings / output, "--restart"]
    assert "must not be one of the inputs" in refused(*words, *(["--format", "csv"] if "png" in output else []))
    assert contents(drawings) == before


@pytest.mark.parametrize("option", [(), ("--restart",), ("--append",)], ids=" ".join)
@pytest.mark.parametrize(
    ("given", "output"),
    [
        (".", "ant.npy"),
        (".", "cat.jsonl"),
        (".", "link.npy"),
        ("*.npy", "bee.npy"),
        ("above", "above/pictures/a.png"),
        ("nested", "nested/inner/ant.npy"),
    ],
)
def test_a_file_of_an_input_folder_is_never_the_output(refused, drawings, tmp_path, given, output, option):
    """The folder has other drawings, too, and the file has no other name in it."""
    (drawings / "cat.jsonl").write_text('{"drawing": [[[0, 255], [0, 255]]]}\n')
    (drawings / "above" / "pictures").mkdir(parents=True)
    (drawings / "nested" / "inner").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.diag(np.full(28, 255, np.uint8))).save(drawings / "above" / "pictures" / name)
    for name in ("ant.npy", "bee.npy"):
        (drawings / "nested" / "inner" / name).write_bytes((drawings / name).read_bytes())
    target = drawings / output
    if output == "link.npy":
        target = tmp_path / "elsewhere.npy"
        target.symlink_to(drawings / "ant.npy")
    before = contents(drawings)
    words = ["score", drawings / given, "--output", target, *option]
    assert "must not be one of the inputs" in refused(*words, *(["--format", "csv"] if "png" in output else []))
    assert contents(drawings) == before


def test_standard_input_is_never_the_output(run_command, tiny_service, drawings):
    """A file that is read through standard input is not the output, either."""
    path = drawings / "ant.npy"
    before = path.read_bytes()
    with path.open("rb") as file:
        words = ["score", "-", "--output", path, "--restart", "--server", tiny_service.address]
        finished = run_command("sketchbatch", *words, stdin=file)
    assert (finished.returncode, path.read_bytes()) == (4, before)
    assert "must not be one of the inputs" in finished.stderr


def test_merge_and_evaluate_replace_no_input(sketchbatch, command, refused, drawings, tmp_path):
    """`merge` does not replace a shard, nor `evaluate` a file of drawings."""
    for number in range(2):
        assert command("score", drawings, "--output", tmp_path / "o.csv", "--shard", f"{number}/2").code == 0
    shards = sorted(tmp_path.glob("o-*.csv"))
    before = contents(tmp_path)
    for words in (
        ["evaluate", drawings, "--json", drawings / "ant.npy"],
        ["evaluate", drawings, "--html", drawings / "bee.npy"],
    ):
        assert "must not be one of the inputs" in refused(*words)
    assert contents(tmp_path) == before
    merged = sketchbatch("merge", *shards, "--output", shards[1], "--restart")
    assert (merged.code, "must not be one of the inputs" in merged.err) == (4, True)
    twice = sketchbatch("merge", *shards, shards[0], "--output", tmp_path / "m.csv")
    assert twice.code == 4
    assert f"{shards[0]}: must be another shard than {shards[0]}, got shard 0 twice" in twice.err
    assert contents(tmp_path) == before


def test_a_file_that_no_job_wrote_stays(command, refused, drawings, tmp_path):
    """A file of another program is replaced only with --restart; an empty file and an own output are replaced."""
    notes, rejects = tmp_path / "notes.csv", tmp_path / "notes.csv.rejects.jsonl"
    notes.write_text("my notes\n")
    assert "notes.csv: exists, and no job has written it" in refused("score", drawings, "--output", notes)
    assert notes.read_text() == "my notes\n"
    assert command("score", drawings, "--output", notes, "--restart").code == 0
    assert "already finished" in command("score", drawings, "--output", notes).err
    with notes.open("a") as file:
        file.write("more\n")
    assert "has changed since a job wrote it" in refused("score", drawings, "--output", notes)
    notes.write_text("")
    assert command("score", drawings, "--output", notes).code == 0
    notes.unlink()
    rejects.write_text("my notes\n")
    assert "rejects.jsonl: exists, and no job" in refused("score", drawings, "--output", notes)
    assert rejects.read_text() == "my notes\n"


def test_merge_replaces_no_other_file(sketchbatch, command, drawings, tmp_path):
    """`merge` replaces an earlier output of the same job; another job's or another program's only with --restart."""
    assert command("score", drawings / "ant.npy", "--output", tmp_path / "o.csv", "--shard", "0/1").code == 0
    shard, output = tmp_path / "o.csv", tmp_path / "m.csv"
    for _ in range(2):
        assert sketchbatch("merge", shard, "--output", output).code == 0
    assert command("score", drawings / "bee.npy", "--output", tmp_path / "p.csv").code == 0
    for other, message in ((tmp_path / "p.csv", "is the output of another job"), (drawings / "ant.csv", "no job has")):
        if "ant" in other.name:
            other.write_text("mine")
        before = other.read_bytes()
        finished = sketchbatch("merge", shard, "--output", other)
        assert (finished.code, finished.err.count("\n"), other.read_bytes()) == (4, 1, before)
        assert message in finished.err
        assert sketchbatch("merge", shard, "--output", other, "--restart").code == 0
        assert other.read_bytes() == output.read_bytes()


def test_a_report_replaces_only_reports(command, refused, drawings, tmp_path):
    """`evaluate` replaces its earlier reports and empty files, but no other file."""
    pages = {"--json": tmp_path / "m.json", "--html": tmp_path / "m.html"}
    words = ["evaluate", drawings, "--quiet", *(word for pair in pages.items() for word in pair)]
    (tmp_path / "m.json").touch()
    for _ in range(2):
        assert command(*words).code == 0
    for option, path in pages.items():
        path.write_text("<html>mine</html>")
        assert "exists, and is no report of Sketchbatch" in refused("evaluate", drawings, option, path)
        assert path.read_text() == "<html>mine</html>"


@pytest.mark.parametrize("kind", ["folder", "link", "socket", "under a file", "parts", "manifest", "rejects"])
def test_what_is_no_file_is_refused(refused, drawings, tmp_path, kind):
    """A folder, socket or link that leads nowhere is refused before a row is sent; a pipe for the manifest, too."""
    output = tmp_path / "o.csv"
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "folder":
            output.mkdir()
        elif kind == "link":
            output.symlink_to("nowhere")
        elif kind == "socket":
            bound.bind(str(output))
        elif kind == "under a file":
            output.write_text("x")
            output /= "o.csv"
        elif kind == "parts":
            (tmp_path / "o.csv.parts").touch()
        else:
            os.mkfifo(tmp_path / f"o.csv.{kind}{'.jsonl' if kind == 'rejects' else '.json'}")
        before = sorted(tmp_path.rglob("*"))
        message = refused("score", drawings, "--output", output)
        assert "expected a f" in message or "must be a folder" in message or "no job has written it" in message
        assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_folder_is_named(refused, drawings):
    """If no file can be written to the folder of OUTPUT, the message names both."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders belong to one user
        Path(folder).chmod(0o555)
        shutil.copytree(drawings, drawings := Path(folder) / "in")
        users = os.getresuid()
        try:
            if users[1] == 0:
                os.setresuid(65532, 65532, 0)  # root may write everywhere
            message = refused("score", drawings, "--output", Path(folder) / "o.csv")
        finally:
            os.setresuid(*users)
            Path(folder).chmod(0o755)
    assert f"{folder}/o.csv: cannot be written, because the folder {folder} is read-only for this user" in message


def test_a_link_is_followed(command, drawings, tmp_path):
    """The file that a link leads to is replaced, and the link stays; the manifest stands next to the file."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "night.csv").touch()
    (tmp_path / "latest.csv").symlink_to("real/night.csv")
    assert command("score", drawings, "--output", tmp_path / "latest.csv").code == 0
    assert (tmp_path / "latest.csv").is_symlink()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["night.csv", "night.csv.manifest.json"]
    assert "already finished" in command("score", drawings, "--output", tmp_path / "latest.csv").err


@pytest.mark.parametrize("name", ["p.csv", "p.fifo"])
def test_streams_are_written(command, drawings, tmp_path, name):
    """A named pipe, a device and /dev/stdout receive the rows, as standard output does with `-`, and stay."""
    assert command("score", drawings, "--output", tmp_path / "o.csv").code == 0
    expected = (tmp_path / "o.csv").read_text()
    pipe, received = tmp_path / name, []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    piped = command("score", drawings, "--output", pipe)
    reader.join()
    assert (piped.code, received, piped.err) == (0, [expected], f"waiting for a reader of {pipe}\n")
    assert sorted(path.name for path in tmp_path.glob("p.*")) == [name]
    assert command("score", drawings, "--output", "/dev/stdout")[:2] == (0, expected)
    assert command("score", drawings, "--output", "/dev/null")[:2] == (0, "")
    assert Path("/dev/null").is_char_device()
    assert json.loads(command("evaluate", drawings, "--quiet", "--json", "/dev/stdout").out)["rows"] == 6


URL = "s3://bucket/a.csv"


@pytest.mark.parametrize(
    "words",
    [
        ["score", URL],
        ["score", "x.npy", "--output", URL],
        ["evaluate", URL],
        ["evaluate", ".", "--json", URL],
        ["evaluate", ".", "--html", "https://host/a.html"],
        ["merge", "file:///a.csv", "--output", "b.csv"],
        ["merge", "a.csv", "--output", URL],
        *(["health", option, URL] for option in ("--token-file", "--ca", "--cert", "--key")),
    ],
)
def test_a_url_is_no_path(sketchbatch, tmp_path, monkeypatch, words):
    """A URL is refused in one line in place of any path, and no folder `s3:` appears."""
    monkeypatch.chdir(tmp_path)
    finished = sketchbatch(*words)
    assert (finished.code, finished.err.count("\n"), list(tmp_path.iterdir())) == (4, 1, [])
    assert ": expected a path on this machine, got a URL; mount the storage" in finished.err


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("sketchbatch-train", ["explore", "--data", URL, "--output", "e.html"]),
        ("sketchbatch-train", ["adapt", "a.onnx", "--output", URL]),
        ("sketchbatch-serve", ["--model", URL]),
    ],
)
def test_trainer_and_service_take_no_url(run_command, tmp_path, program, words):
    """The trainer and the service refuse a URL in place of a path, too."""
    finished = run_command(program, *words, cwd=tmp_path)
    assert finished.returncode != 0
    assert "a path on this machine, got" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_explore_replaces_only_its_reports(run_command, drawings, tmp_path):
    """`sketchbatch-train explore` replaces its earlier page and figures, but no other file."""
    words = ["explore", "--data", drawings, "--classes", "all", "--output", "e.html", "--json", "e.json"]
    for _ in range(2):
        assert run_command("sketchbatch-train", *words, cwd=tmp_path).returncode == 0
    (tmp_path / "e.json").write_text("mine")
    refused = run_command("sketchbatch-train", *words, cwd=tmp_path)
    assert (refused.returncode, (tmp_path / "e.json").read_text()) == (1, "mine")
    assert "e.json: exists, and is no report of Sketchbatch" in refused.stderr


def test_the_trainer_names_the_file_that_the_system_refuses(run_command, tmp_path):
    """An error of the operating system is one line with the path and the reason, and without a number."""
    (tmp_path / "file").touch()
    refused = run_command("sketchbatch-train", "sketch", "--folder", "file/x", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (1, "sketchbatch-train: file/x: Not a directory\n")


def test_a_folder_may_look_like_a_url(command, sketchbatch, drawings, tmp_path, monkeypatch):
    """Files in a local folder called `s3:` are read and written, Parquet too, which pyarrow takes for URLs."""
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    assert command("score", drawings, "--output", "s3:/o.parquet", "--shard", "0/2").code == 0
    assert command("score", drawings, "--output", "s3:/o.parquet", "--shard", "1/2").code == 0
    assert sketchbatch("merge", *Path("s3:").glob("*.parquet"), "--output", "s3:/all.parquet").code == 0
    refused = command("score", "s3:/all.parquet", "--output", "b.csv")
    assert "s3:/all.parquet: expected drawings" in refused.err or "column" in refused.err


def edit(path: Path, **changes: object) -> None:
    """Change fields of the plan in a manifest."""
    found = json.loads(path.read_text())
    found.get("plan", found).update(changes)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("damage", ["newer", "cut", "other"])
def test_an_unknown_manifest_stops_the_job(command, refused, drawings, tmp_path, monkeypatch, is_finished, damage):
    """A manifest of another version, or a damaged one, stops `score`; output and parts stay until --restart."""
    output = tmp_path / "o.csv"
    if not is_finished:
        fail_after_a_part(monkeypatch)
    words = ["score", drawings, "--output", output, "--part-rows", 2]
    assert command(*words).code == (0 if is_finished else 1)
    manifest = tmp_path / ("o.csv.manifest.json" if is_finished else "o.csv.parts/manifest.json")
    if damage == "newer":
        edit(manifest, format=2)
    else:
        manifest.write_bytes(b"[]" if damage == "other" else manifest.read_bytes()[:50])
    before = contents(tmp_path)
    message = refused(*words)
    assert f"{manifest}: cannot be read: " in message
    assert ("the format must be 1, got 2" in message) == (damage == "newer")
    assert "finish the job with the version of sketchbatch that began it, or discard it with score" in message
    assert contents(tmp_path) == before
    assert command(*words, "--restart").code == 0


def fail_after_a_part(monkeypatch):
    """Make the next job fail after it has saved its first part."""
    save = Parts.save

    def save_and_fail(self, part):
        monkeypatch.undo()
        save(self, part)
        raise DiskFull("full")

    monkeypatch.setattr(Parts, "save", save_and_fail)


def test_merge_stops_at_a_manifest_of_another_version(sketchbatch, command, drawings, tmp_path):
    """`merge` names the manifest that it cannot read."""
    output = tmp_path / "o.csv"
    for number in range(2):
        assert command("score", drawings, "--output", output, "--shard", f"{number}/2").code == 0
    edit(tmp_path / "o-00001-of-00002.csv.manifest.json", format=2)
    finished = sketchbatch("merge", *tmp_path.glob("o-*.csv"), "--output", output)
    assert (finished.code, output.exists()) == (4, False)
    assert "o-00001-of-00002.csv.manifest.json: cannot be read: the format must be 1, got 2" in finished.err


def test_an_interrupted_restart_resumes(command, drawings, tmp_path, monkeypatch):
    """After an interrupted --restart, the same command without it resumes, and replaces the old output at the end."""
    output = tmp_path / "o.csv"
    output.write_text("another program's\n")
    fail_after_a_part(monkeypatch)
    words = ["score", drawings, "--output", output, "--part-rows", 2]
    assert command(*words, "--restart").code == 1
    assert output.read_text() == "another program's\n"
    finished = command(*words)
    assert (finished.code, "resuming after 2 of 6 rows" in finished.err) == (0, True)
    assert len(output.read_text().splitlines()) == 7
    assert not (tmp_path / "o.csv.parts").exists()


def test_a_file_that_appears_during_the_job_stays(command, refused, drawings, tmp_path, monkeypatch):
    """If another program writes OUTPUT during the job, the job keeps its parts, and resumes once the file is moved."""
    output, save = tmp_path / "o.csv", Parts.save

    def save_and_write(self, part):
        save(self, part)
        output.write_text("mine")

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "save", save_and_write)
        message = refused("score", drawings, "--output", output)
    assert "o.csv: was written during the job; move it, then run the same command again" in message
    assert output.read_text() == "mine"
    output.unlink()
    finished = command("score", drawings, "--output", output)
    assert (finished.code, "resuming after 6 of 6 rows" in finished.err) == (0, True)


def test_a_job_that_ended_before_its_manifest_is_finished_later(command, drawings, tmp_path, monkeypatch):
    """If the process ends between the renaming of the output and of the manifest, the same command finishes the job."""
    output, replace = tmp_path / "o.csv", Path.replace

    def replace_and_fail(self, target):
        replace(self, target)
        if target == output:
            raise DiskFull("the process ends here")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_fail)
        assert command("score", drawings, "--output", output).code == 1
    assert output.exists()
    assert not (tmp_path / "o.csv.manifest.json").exists()
    assert command("score", drawings, "--output", output).code == 0
    assert Manifest.read(output).rows == 6


def test_files_of_others_in_the_folder_of_parts_stay(command, drawings, tmp_path):
    """A job deletes only its own files from OUTPUT.parts."""
    (tmp_path / "o.csv.parts").mkdir()
    (tmp_path / "o.csv.parts" / "part-00000-abc.csv").write_text("mine")
    assert command("score", drawings, "--output", tmp_path / "o.csv").code == 0
    assert [path.name for path in (tmp_path / "o.csv.parts").iterdir()] == ["part-00000-abc.csv"]


def test_the_manifest_names_the_renderer(command, refused, tmp_path):
    """A job does not resume with another renderer; jobs of ready bitmaps and older manifests do not name it."""
    (tmp_path / "ant.ndjson").write_text('{"drawing": [[[0, 255], [0, 255]]]}\n' * 3)
    output = tmp_path / "o.csv"
    assert command("score", tmp_path / "ant.ndjson", "--output", output).code == 0
    rendered = Manifest.read(output).plan.renderer
    digest, name = rendered.split(" ", 1)
    assert len(digest) == 8
    assert name.startswith(("(cairo ", "(numpy)"))
    for known in (f"{digest} (cairo of another version)", ""):
        edit(tmp_path / "o.csv.manifest.json", renderer=known)
        assert "already finished" in command("score", tmp_path / "ant.ndjson", "--output", output).err
    edit(tmp_path / "o.csv.manifest.json", renderer="00000000 (numpy)")
    message = refused("score", tmp_path / "ant.ndjson", "--output", output)
    assert f"the renderer of strokes and pictures was 00000000 (numpy), and is now {rendered}" in message


PROGRAM = Path(sys.executable).parent / "sketchbatch"


@pytest.mark.parametrize(
    ("closed", "words", "message"),
    [
        (1, ["health"], "standard output: closed"),
        (1, ["score", "ant.npy", "--output", "-"], "standard output: closed"),
        (0, ["score", "-", "--output", "o.csv"], "standard input: closed"),
        (2, ["score", "ant.npy", "--output", "o.csv"], ""),
        (None, ["health"], "standard output: No space left on device"),
        (None, ["--help"], "standard output: No space left on device"),
    ],
)
def test_closed_and_full_standard_streams_are_named(tiny_service, drawings, closed, words, message):
    """A closed or full standard stream ends a command that needs it, with one line that names the stream."""
    redirected = f"{closed}{'<' if closed == 0 else '>'}&-" if closed is not None else ""
    server = {"SKETCHBATCH_SERVER": tiny_service.address}
    with Path("/dev/full").open("wb") as full:
        finished = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", PROGRAM, *words],
            stdout=subprocess.PIPE if closed is not None else full,
            stderr=subprocess.PIPE,
            cwd=drawings,
            env=os.environ | server,
            text=True,
            check=False,
        )
    assert (finished.returncode, finished.stderr.count("\n")) == ((1, 1) if message else (0, 0)), finished.stderr
    assert message in finished.stderr


@pytest.mark.parametrize(
    "words",
    [
        *(["score", "ant.npy", "--output", "-", "--format", kind] for kind in ("csv", "jsonl", "parquet", "npy")),
        ["evaluate", "."],
        ["model"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_a_reader_that_ends_early_causes_no_message(tiny_service, drawings, words):
    """`sketchbatch ... | head` ends with exit code 1 and without a message, whatever the command writes."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        finished = subprocess.run(
            [PROGRAM, *words],
            stdout=closed,
            stderr=subprocess.PIPE,
            cwd=drawings,
            env=os.environ | {"SKETCHBATCH_SERVER": tiny_service.address},
            text=True,
            check=False,
        )
    assert (finished.returncode, finished.stderr) == (1, "")


WINDOWS = """
import signal, sys
sys.modules["fcntl"] = None
del signal.SIGHUP, signal.pthread_sigmask
from sketchbatch_client.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["health"], 0, "SERVING"),
        (["evaluate", "."], 0, "accuracy"),
        (["score", "ant.npy", "--output", "-"], 0, "source"),
        (["score", "ant.npy", "--output", "o.csv"], 4, "need Linux or macOS, and on Windows WSL"),
    ],
)
def test_commands_work_without_the_modules_of_unix(tiny_service, drawings, words, code, text):
    """Without fcntl and SIGHUP, as on Windows, all commands work except `score` to a file, which says so."""
    server = {"SKETCHBATCH_SERVER": tiny_service.address}
    finished = subprocess.run(
        [sys.executable, "-c", WINDOWS, *words], cwd=drawings, env=os.environ | server, capture_output=True, check=False
    )
    output = io.TextIOWrapper(io.BytesIO(finished.stdout + finished.stderr)).read()
    assert (finished.returncode, text in output, "Traceback" in output) == (code, True, False), output
