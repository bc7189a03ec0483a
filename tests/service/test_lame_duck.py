"""Test the arithmetic of the lame duck time."""

import pytest
from sketchbatch_service.app import lame_duck
from structlog.testing import capture_logs


def test_the_lame_duck_time_of_kubernetes_covers_a_resolution_and_the_age_of_connections():
    """If connections live at most 20 s, a lame duck time of 58 s is sufficient: 35 s of admission, 23 s of leaving.

    Clients learn of new replicas in at most 35 s: gRPC waits up to 30 s between resolutions, and DNS caches an answer
    for 5 s. The last connection is closed after 23 s at most: 20 s, 10 % more by gRPC's jitter, and 1 s for GOAWAY.
    """
    assert lame_duck.LEAST_MIN_READY_S == 35
    assert lame_duck.leave_s(20) == pytest.approx(23)
    assert lame_duck.least_lame_duck_s(20) == pytest.approx(58)
    assert lame_duck.admission_s(60, 20) == pytest.approx(37)


@pytest.mark.parametrize(("lame_duck_s", "age_s"), [(2, 0), (0, 0), (0, 20), (22, 20)])
def test_without_time_for_connections_to_age_there_is_no_admission(lame_duck_s, age_s):
    """If connections cannot reach their maximum age in the lame duck time, there is no admission time.

    Watch then reports NOT_SERVING at once, so that clients change to other replicas.
    """
    assert lame_duck.admission_s(lame_duck_s, age_s) is None


def test_a_lame_duck_time_that_only_lets_connections_age_has_no_admission_time():
    """In the shortest lame duck time in which connections can age, the service closes its listener at once."""
    assert lame_duck.admission_s(lame_duck.leave_s(2), 2) == 0


@pytest.mark.parametrize(
    ("lame_duck_s", "age_s", "warns"), [(2, 20, True), (23, 20, False), (0, 20, False), (2, 0, False)]
)
def test_a_lame_duck_time_in_which_connections_cannot_age_is_reported(lame_duck_s, age_s, warns):
    """A service whose connections age warns at start if its lame duck time is too short for them."""
    with capture_logs() as events:
        lame_duck.warn_if_too_short(lame_duck_s, age_s)
    assert [event["needed_s"] for event in events] == [pytest.approx(23)] * warns
