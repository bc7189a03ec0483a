"""A file is replaced completely or not at all."""

import subprocess
import sys

import pytest
from sketchbatch_client.atomic import replacing


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    """A new file appears, or replaces an older file, only when it is complete; no temporary file remains."""
    path = tmp_path / "new" / "scores.csv"
    with replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with replacing(path) as partial:
        partial.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_unfinished_file_is_removed(tmp_path, error):
    """After an error, Ctrl-C or a signal, the older file stays and the partial file is removed."""
    path = tmp_path / "scores.csv"
    path.write_text("older")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    """If the path is a symbolic link, the file that it leads to is replaced; no temporary file remains."""
    (tmp_path / "real").write_text("older")
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as partial:
        partial.write_text("newer")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "newer"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_call_that_does_not_return_does_not_keep_the_process():
    """A signal ends the process after the time for its cleanup, also while a call of a C library does not return."""
    program = """
import ctypes
from sketchbatch_client import atomic
atomic._CLEANUP_S = 0.1
atomic.unwind_on_signals()
ctypes.CDLL(None).system(b"kill -TERM $PPID; read until_the_test_ends")
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        assert process.wait(15) == 143
