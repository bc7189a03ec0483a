"""The most rows of a request follow from the number of classes."""

import pytest
from sketchbatch_service.api.request_limits import max_rows


@pytest.mark.parametrize(
    ("setting", "classes", "rows"),
    [(16384, 3, 16384), (16384, 345, 16384), (16384, 512, 16384), (16384, 10_000, 838), (100, 10_000, 100)],
)
def test_few_classes_keep_the_setting_and_many_lower_it(setting, classes, rows):
    """The scores of one request take 32 MiB at most; up to 512 classes, the default setting stays the limit."""
    assert max_rows(setting, classes) == rows


def test_a_request_may_always_have_one_row():
    """The limit is at least one row."""
    assert max_rows(16384, 100_000_000) == 1
