"""A file is replaced completely or not at all."""

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
