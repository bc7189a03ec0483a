"""Run the nightly script: new files, a lock that is held, rejected rows, and a service that is not there."""

import fcntl
import json
import shutil

import pyarrow.parquet as pq
import pytest

from .conftest import UNUSED, run
from .relay import relaying

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not shutil.which("flock"), reason="flock is absent"),
]


@pytest.fixture
def night(tmp_path, cats):
    """Return the path of the output, and a folder of drawings with one file."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    shutil.copy(cats, folder / "monday.npy")
    return tmp_path / "labels.parquet", folder


def nightly(night, server: str):
    return run(["./nightly.sh", *map(str, night)], server, ATTEMPTS="2", WAIT_S="0")


def test_each_night_adds_the_rows_of_new_files(night, wide_service):
    """The first run scores all rows, also if calls fail, and the next run adds the rows of a new file."""
    output, folder = night
    with relaying(wide_service.address) as relay:
        first = nightly(night, relay.address)
        assert (first.returncode, first.stdout) == (0, f"{output} is up to date\n"), first.stderr
        shutil.copy(folder / "monday.npy", folder / "tuesday.npy")
        assert nightly(night, relay.address).returncode == 0
    table = pq.read_table(output)
    assert table.num_rows == 10_000
    assert set(table["label"].to_pylist()) == {"cat"}


def test_a_second_run_ends_while_the_first_run_holds_the_lock(night):
    """A run that finds the lock taken exits with 1 and does not call the service."""
    with night[0].with_name("labels.parquet.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        finished = nightly(night, UNUSED)
    assert (finished.returncode, finished.stderr) == (1, f"error: the previous run still holds {night[0]}.lock\n")


def test_a_service_that_is_not_there_is_tried_again(night):
    """After exit code 1 the script repeats the command as often as ATTEMPTS allows, and exits with 1."""
    finished = nightly(night, UNUSED)
    assert finished.returncode == 1
    assert "attempt 1 of 2 failed; the next one starts in 0 s\n" in finished.stderr
    assert finished.stderr.endswith("error: 2 attempts failed; the next run resumes the job\n")


def test_rejected_drawings_are_reported(night, wide_service):
    """A row that is not a drawing gives exit code 3 and a line that names the file with the reason."""
    output, folder = night
    drawing = json.dumps({"drawing": [[[0, 255], [0, 255]]]})
    (folder / "monday.npy").unlink()
    (folder / "tuesday.ndjson").write_text(f'{drawing}\n{{"drawing": []}}\n')
    finished = nightly(night, wide_service.address)
    assert finished.returncode == 3
    assert finished.stderr.endswith(f"see {output}.rejects.jsonl and {output}.manifest.json\n")
    later = nightly(night, wide_service.address)
    assert later.returncode == 0
    assert later.stdout.endswith(f"is up to date\nrows rejected so far: 1, see {output}.rejects.jsonl\n")


def test_files_that_were_not_read_are_reported(night, wide_service):
    """Several inputs may be named; without rejects, the line of exit code 3 names the manifest alone."""
    output, folder = night
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    shutil.move(folder / "monday.npy", folder.with_name("other.npy"))
    shutil.copy(folder.with_name("other.npy"), folder / "tuesday.npy")
    finished = nightly((output, folder, folder.with_name("other.npy")), wide_service.address)
    assert finished.returncode == 3
    assert finished.stderr.endswith(f"were not read; see {output}.manifest.json\n")
    assert pq.read_table(output).num_rows == 10_000


def test_an_error_that_a_retry_cannot_repair_is_not_repeated(night, wide_service):
    """Exit code 4, here of a damaged file, ends the script at once."""
    (night[1] / "monday.npy").write_bytes(b"not an array")
    finished = nightly(night, wide_service.address)
    assert finished.returncode == 4
    assert "attempt" not in finished.stderr
    assert finished.stderr.endswith("error: exit code 4; a retry cannot succeed, so correct the cause\n")
