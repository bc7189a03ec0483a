"""Test which errors of the client are permanent, and the exit codes of the command for these errors."""

import errno

import pytest
import sketchbatch_client
from sketchbatch_client import errors
from sketchbatch_client.commands import merge

PERMANENT = [
    errors.FileRefused("x.npy: truncated"),
    errors.DrawingRefused("x.ndjson:3: a drawing must have at least one stroke, got none"),
    errors.JobRefused("o.csv was begun differently"),
    errors.ExtraMissing("demo needs starlette and uvicorn"),
    errors.OutputRefused("o.csv: must not be one of the inputs"),
    errors.RequestRefused("top_k must be 1..3"),
    errors.ModelNotFound("there are: tiny"),
    errors.Unauthenticated("token is missing"),
    PermissionError(errno.EACCES, "Permission denied"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory"),
    OSError(errno.EROFS, "Read-only file system"),
]
TEMPORARY = [
    errors.FileChanged("x.npy: changed while it was read"),
    errors.DiskFull("o.csv: No space left on device"),
    errors.JobNotReady("another process is writing it"),
    errors.Overloaded("queue full"),
    errors.Unavailable("no response"),
    errors.DeadlineExceeded("no response in 60 s"),
    errors.ModelChanged("the file was replaced"),
    errors.ServerFailed("returned INTERNAL"),
    errors.SketchbatchError("a reader process was killed"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError("unknown"),
]


def described(error):
    return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", PERMANENT, ids=described)
def test_an_error_that_a_retry_cannot_repair_is_permanent(error):
    """Refused inputs, options, models and credentials, and unusable paths, fail again on each retry."""
    assert errors.fails_again(error)


@pytest.mark.parametrize("error", TEMPORARY, ids=described)
def test_an_error_of_the_surroundings_is_temporary(error):
    """After errors of the service, the disk and other processes, the same command may succeed."""
    assert not errors.fails_again(error)


def test_each_error_of_the_client_is_sorted():
    """Each error class is in one of the lists PERMANENT and TEMPORARY; the test fails for a new class in neither."""
    classes, found = [errors.SketchbatchError], set()
    while classes:
        found.add(each := classes.pop())
        classes += each.__subclasses__()
    assert found == {type(error) for error in PERMANENT + TEMPORARY if isinstance(error, errors.SketchbatchError)}
    assert {each.__name__ for each in found} <= set(sketchbatch_client.__all__)


@pytest.mark.parametrize(("number", "is_permanent"), [(errno.ENOENT, True), (errno.EIO, False), (errno.ESTALE, False)])
def test_a_file_on_a_failing_disk_is_not_permanently_unreadable(number, is_permanent):
    """A file that could not be read because of its disk or network may be readable later."""
    refused = errors.FileRefused("x.npy: cannot be read")
    refused.__cause__ = OSError(number, "reason")
    assert errors.fails_again(refused) is is_permanent


@pytest.mark.parametrize(
    ("error", "code"), [*((error, 4) for error in PERMANENT), *((error, 1) for error in TEMPORARY)], ids=str
)
def test_the_exit_code_tells_whether_a_retry_can_succeed(sketchbatch, monkeypatch, tmp_path, error, code):
    """The command prints the error as one line; its exit code is 4 for a permanent error, 1 for a temporary error."""

    def fail(shards, output, *, restart, ignores_others):
        raise error

    monkeypatch.setattr(merge, "merge_shards", fail)
    finished = sketchbatch("merge", tmp_path / "s.csv", "--output", tmp_path / "o.csv")
    assert finished == (code, "", f"sketchbatch: {error}\n")
