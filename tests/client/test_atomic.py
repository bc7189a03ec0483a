"""Files appear whole or not at all."""

import pytest
from sketchbatch_client.atomic import replacing


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    """Until then an older one stays; nothing else is left beside it."""
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
def test_a_file_that_was_not_finished_vanishes(tmp_path, error):
    """An error, Ctrl-C or a signal in the middle leaves the older file, and no part of the newer one."""
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
