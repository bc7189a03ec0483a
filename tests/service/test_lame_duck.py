"""Test the arithmetic of the lame duck time."""

import pytest
from sketchbatch_service.app import lame_duck
from structlog.testing import capture_logs


def test_the_lame_duck_time_of_kubernetes_covers_a_resolution_and_the_age_of_connections():
    """With connections of at most 20 s: 30 s and 5 s until clients know other replicas, 23 s until none is left."""
    assert lame_duck.LEAST_MIN_READY_S == 35
    assert lame_duck.leave_s(20) == pytest.approx(23)
    assert lame_duck.least_lame_duck_s(20) == pytest.approx(58)
    assert lame_duck.admission_s(60, 20) == pytest.approx(37)


@pytest.mark.parametrize(("lame_duck_s", "age_s"), [(2, 0), (0, 0), (0, 20), (22, 20)])
def test_without_time_for_connections_to_age_there_is_no_admission(lame_duck_s, age_s):
    """If connections do not reach their maximum age in the lame duck time, clients must be told at once to leave."""
    assert lame_duck.admission_s(lame_duck_s, age_s) is None


def test_a_lame_duck_time_that_only_lets_connections_age_has_no_admission_time():
    """The shortest lame duck time in which connections age closes the listener at once."""
    assert lame_duck.admission_s(lame_duck.leave_s(2), 2) == 0


@pytest.mark.parametrize(
    ("lame_duck_s", "age_s", "warns"), [(2, 20, True), (23, 20, False), (0, 20, False), (2, 0, False)]
)
def test_a_lame_duck_time_in_which_connections_cannot_age_is_reported(lame_duck_s, age_s, warns):
    """A service whose connections age warns at start if its lame duck time is too short for them."""
    with capture_logs() as events:
        lame_duck.warn_if_too_short(lame_duck_s, age_s)
    assert [event["needed_s"] for event in events] == [pytest.approx(23)] * warns
