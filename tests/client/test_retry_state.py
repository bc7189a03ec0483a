"""Test how long a request is retried if this process was stopped meanwhile, such as in a container that is paused."""

import grpc
import pytest
from gates import Clock
from sketchbatch_client.errors import DeadlineExceeded
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy
from sketchbatch_client.rpc.retries.retry_state import RetryState

TIMEOUT_S = 10.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rpc_error(code: grpc.StatusCode, pushback_ms: int | None = None) -> grpc.RpcError:
    error = grpc.RpcError()
    error.code = lambda: code
    error.trailing_metadata = lambda: (("grpc-retry-pushback-ms", str(pushback_ms)),) if pushback_ms else ()
    error.details = lambda: ""
    return error


def state(clock: Clock, **options) -> RetryState:
    return RetryState(RetryPolicy(**options), "server", TIMEOUT_S, has_reached_server=True, clock=clock)


def test_a_request_whose_deadline_passed_while_the_client_was_stopped_is_sent_again(clock):
    """A client that was stopped for a minute sends the request again at once, with the whole timeout."""
    retry = state(clock)
    clock.advance(60)
    assert retry.delay_s(rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED)) == 0.0
    assert retry.remaining_s() == TIMEOUT_S
    clock.advance(60)  # stopped again
    assert retry.delay_s(rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED)) == 0.0


@pytest.mark.parametrize("late_s", [0.0, 0.5])
def test_a_request_that_gets_no_response_in_time_fails(clock, late_s):
    """A request whose deadline passes while the client runs fails, even if the client notices it a little late."""
    retry = state(clock)
    clock.advance(TIMEOUT_S + late_s)
    error = rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert retry.delay_s(error) is None
    assert isinstance(retry.failure(error), DeadlineExceeded)


@pytest.mark.parametrize(
    "error", [rpc_error(grpc.StatusCode.UNAVAILABLE), rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback_ms=100)]
)
def test_a_stopped_client_retries_errors_that_it_reads_late(clock, error):
    """A lost connection or a pushback is retried although the deadline passed while the client was stopped."""
    retry = state(clock)
    clock.advance(60)
    delay_s = retry.delay_s(error)
    assert delay_s is not None
    assert 0 < delay_s < TIMEOUT_S
    assert retry.remaining_s() == TIMEOUT_S


def test_an_error_that_no_retry_repairs_ends_a_request_of_a_stopped_client(clock):
    """An invalid request fails after its first attempt, also if the client was stopped meanwhile."""
    retry = state(clock)
    clock.advance(60)
    assert retry.delay_s(rpc_error(grpc.StatusCode.INVALID_ARGUMENT)) is None


def test_the_patience_of_a_stopped_client_allows_the_minimum_of_attempts(clock):
    """A stop that is longer than the patience, but ends before the deadline, leaves `max_attempts` attempts."""
    retry = state(clock, patience_s=2.0, max_attempts=3)
    clock.advance(TIMEOUT_S / 2)
    delays = [retry.delay_s(rpc_error(grpc.StatusCode.UNAVAILABLE)) for _ in range(3)]
    assert [delay_s is None for delay_s in delays] == [False, False, True]
