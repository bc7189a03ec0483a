"""Test the arithmetic of the lame duck time."""

import pytest
from sketchbatch_service.app import lame_duck
from structlog.testing import capture_logs


def test_the_lame_duck_time_of_kubernetes_covers_a_resolution_and_the_age_of_connections():
    """With a maximum connection age of 20 s, the least lame duck time is 58 s, the sum of three times.

    Clients resolve a name at most once in 30 s. DNS may return an old answer for 5 s. The last connection closes 23 s
    after the listener: after 20 s, gRPC's variation of 10 %, and 1 s for small calls.
    """
    assert lame_duck.LEAST_MIN_READY_S == 35
    assert lame_duck.leave_s(20) == pytest.approx(23)
    assert lame_duck.least_lame_duck_s(20) == pytest.approx(58)
    assert lame_duck.admission_s(60, 20) == pytest.approx(37)


@pytest.mark.parametrize(("lame_duck_s", "age_s"), [(2, 0), (0, 0), (0, 20), (22, 20)])
def test_without_time_for_connections_to_age_there_is_no_admission(lame_duck_s, age_s):
    """If connections do not reach their maximum age in the lame duck time, there is no time of admission.

    `Watch` must then report NOT_SERVING at SIGTERM, so that clients leave at once.
    """
    assert lame_duck.admission_s(lame_duck_s, age_s) is None


def test_a_lame_duck_time_that_only_lets_connections_age_has_no_admission_time():
    """With the shortest lame duck time in which all connections age, the listener is closed at SIGTERM."""
    assert lame_duck.admission_s(lame_duck.leave_s(2), 2) == 0


@pytest.mark.parametrize(
    ("lame_duck_s", "age_s", "warns"), [(2, 20, True), (23, 20, False), (0, 20, False), (2, 0, False)]
)
def test_a_lame_duck_time_in_which_connections_cannot_age_is_reported(lame_duck_s, age_s, warns):
    """A service whose connections age warns at start if its lame duck time is too short for them."""
    with capture_logs() as events:
        lame_duck.warn_if_too_short(lame_duck_s, age_s)
    assert [event["needed_s"] for event in events] == [pytest.approx(23)] * warns
