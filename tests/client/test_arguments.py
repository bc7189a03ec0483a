"""Every argument of the client is checked: an invalid one is refused in one line, before any request is sent."""

import asyncio
import math
import re

import numpy as np
import pytest
from sketchbatch_client import AsyncClient, Client, DeadlineExceeded, RequestRefused, RetryPolicy
from sketchbatch_client.ray import SketchbatchScorer, score

CLIENTS = [Client, AsyncClient]

NO_COUNTS = [-1, 0, 2.5, 1024.0, True, "8", math.nan, math.inf, np.float32(8), [8]]
NO_SECONDS = [-1, -math.inf, math.nan, "8", True, [8], np.float32(math.nan)]
COUNTS = ["rows_per_request", "in_flight", "channels"]
YEAR_S = 366 * 86_400


@pytest.fixture(autouse=True)
async def event_loop():
    """Run each test in an event loop, which the channels of AsyncClient need."""


def refused(call, error: type[Exception] = ValueError) -> str:
    """Return the message with which `call` is refused; it must have one line."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
async def test_a_count_that_is_no_positive_integer_is_refused(client, name, value):
    """The error contains the argument's name, what was expected, and the given value."""
    message = refused(lambda: client("localhost:1", **{name: value}))
    assert re.fullmatch(rf"{name} must be (an integer, )?1 or more.*, got {re.escape(repr(value))}", message)


@pytest.mark.parametrize("name", ["in_flight", "channels"])
async def test_a_count_that_would_exhaust_the_machine_is_refused(name):
    """Each connection and each request in flight costs a socket or a thread."""
    assert refused(lambda: Client("localhost:1", **{name: 10**9})).endswith("got 1000000000")


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("value", [*NO_SECONDS, 0], ids=repr)
async def test_a_timeout_that_is_no_positive_number_is_refused(client, value):
    """The error names the argument and contains the given value."""
    message = refused(lambda: client("localhost:1", timeout_s=value))
    assert message == f"timeout_s must be a number above 0, or None = no limit, got {value!r}"


@pytest.mark.parametrize("name", ["patience_s", "first_backoff_s", "max_backoff_s"])
@pytest.mark.parametrize("value", NO_SECONDS, ids=repr)
async def test_a_retry_policy_refuses_times_that_are_no_number(name, value):
    """A delay or a time limit is a number of seconds, 0 or more."""
    message = refused(lambda: RetryPolicy(**{name: value}))
    assert message == f"{name} must be a number, 0 or more, got {value!r}"


@pytest.mark.parametrize("name", ["first_backoff_s", "max_backoff_s"])
async def test_a_retry_policy_refuses_endless_delays(name):
    """A delay must end."""
    assert refused(lambda: RetryPolicy(**{name: math.inf})).endswith("got inf")


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
async def test_a_retry_policy_refuses_attempts_that_are_no_positive_integer(value):
    """A request has one attempt or more."""
    assert refused(lambda: RetryPolicy(max_attempts=value)).endswith(f"got {value!r}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry": 3}, "retry must be a RetryPolicy, got 3"),
        ({"retry": None}, "retry must be a RetryPolicy, got None"),
        ({"tls": "yes"}, "tls must be True, False or a Tls, got 'yes'"),
        ({"tls": 1}, "tls must be True, False or a Tls, got 1"),
        ({"token": b"secret"}, "token must be text, got bytes"),
    ],
)
async def test_an_option_of_another_type_is_refused(options, message):
    """An option that is neither a number nor a switch has a type; the error never contains a token."""
    assert refused(lambda: Client("localhost:1", **options)) == message


@pytest.mark.parametrize("client", CLIENTS)
async def test_numpy_numbers_are_accepted(client, start_server, servicer, drawing):
    """Counts and times often come from arrays."""
    numbers = {"rows_per_request": np.int64(7), "in_flight": np.uint8(2), "channels": np.int32(1)}
    opened = client(start_server(servicer), timeout_s=np.float32(30), **numbers)
    answer = opened.classify(drawing(3), top_k=np.int16(0))
    assert len(answer if client is Client else await answer) == 1
    closed = opened.close()
    await (closed or asyncio.sleep(0))


@pytest.mark.parametrize("top_k", [-1, 2.5, True, "1", None, math.nan, 2**32, 10**30], ids=repr)
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_top_k_that_cannot_be_sent_is_refused(client, top_k, drawing):
    """`classify` raises the error when it is called or awaited, and `score` when it is called."""
    opened = client("localhost:1")

    async def classify() -> None:
        opened.classify(drawing(1), top_k=top_k) if client is Client else await opened.classify(drawing(1), top_k=top_k)

    with pytest.raises(RequestRefused, match=f"top_k must be .*got {re.escape(repr(top_k))}"):
        await classify()
    assert "top_k must be " in refused(lambda: opened.score([drawing(1)], top_k=top_k), RequestRefused)


@pytest.mark.parametrize("names", [{"model_name": 5}, {"model_version": 1}, {"model_name": None}])
async def test_a_model_that_is_not_named_by_text_is_refused(names, drawing):
    """Versions are text, too: "1" is a version, 1 is not."""
    client = Client("localhost:1")
    for call in (client.classify, client.score):
        (name, value), message = *names.items(), refused(lambda call=call: call(drawing(1), **names), RequestRefused)
        assert message == f"{name} must be text, got {value!r}"
    name, value = next(iter(names.items()))
    message = refused(lambda: client.model(**{name.removeprefix("model_"): value}), RequestRefused)
    assert message == f"{name.removeprefix('model_')} must be text, got {value!r}"


@pytest.mark.parametrize("bitmaps", [[[1, 2], [3]], None, "drawing", 5, {}], ids=repr)
async def test_bitmaps_that_are_no_array_are_refused(bitmaps):
    """NumPy's own errors for such values have several lines or another type."""
    assert refused(lambda: Client("localhost:1").classify(bitmaps), RequestRefused).startswith("bitmaps must be uint8 ")


NO_TARGETS = [
    *(5, None, b"a:1", ["a:1", 5], ["a:1", None]),
    *("localhost:abc", "localhost:99999", "localhost:0", "localhost:-1", "localhost:", ":50051", "a b:1"),
    *("::1:5", "http://localhost:1", "https://a.b:1", "ftp://a:1", "dns:///a:99999", "dns:///", "dns:///:1"),
    *("ipv4:127.0.0.1", "ipv4:localhost:1", "ipv6:[::1]", "ipv4:1.2.3.4:5,", "ipv6:1.2.3.4:5"),
    *("unix:", "unix://", "unix:///", "unix://host/path", f"unix:/{'x' * 107}", "unix-abstract:"),
    f"unix-abstract:{'x' * 108}",
    *("unix:/folder/", "unix:/a?b", "unix:/a#b", "unix-abstract:a?b"),
]


@pytest.mark.parametrize("target", NO_TARGETS, ids=lambda target: repr(target)[:30])
async def test_a_target_that_cannot_be_reached_is_refused(target):
    """Otherwise gRPC would report an unreachable server with every request."""
    assert refused(lambda: Client(target)).startswith("target must be ")


@pytest.mark.parametrize(
    "target",
    [
        *(
            "localhost:1",
            "a.b:65535",
            "a.b",
            "[::1]:1",
            "10.0.0.1:1",
            "a-b_c.d:1",
            "dns:///a:1",
            "dns:a",
            "dns://9.9.9.9/a:1",
        ),
        *("ipv4:1.2.3.4:1,1.2.3.5:1", "ipv6:[::1]:1", "xds:///a", "vsock:1:2", "dns:///[::1]:1"),
        *("unix:x", "unix:./x", "unix:/x", "unix:///x", "unix:/x:0", "unix-abstract:x", f"unix:/{'x' * 106}"),
    ],
)
async def test_every_kind_of_target_is_accepted(target):
    """A target may have any form that gRPC documents; without a port, gRPC uses 443."""
    Client(target).close()


@pytest.mark.parametrize("timeout_s", [None, math.inf, 1e300, 9e9, 1e9, 10**30, YEAR_S], ids=repr)
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_long_timeout_is_no_error(client, timeout_s, start_server, servicer, drawing):
    """A request may wait a year or for ever: alone, in a shared request, in a bulk call, and for a health check."""
    opened = client(start_server(servicer), timeout_s=timeout_s, rows_per_request=1)
    calls = [opened.classify(drawing(1)), opened.classify(np.stack([drawing(2)] * 20)), opened.models()]
    results = calls if client is Client else await asyncio.gather(*calls)
    assert [len(each) for each in results] == [1, 20, 1]
    closed = opened.close()
    await (closed or asyncio.sleep(0))


@pytest.mark.parametrize("timeout_s", [math.inf, 9e9], ids=repr)
@pytest.mark.parametrize("client", CLIENTS)
async def test_calls_that_wait_in_the_queue_have_a_long_timeout_too(client, timeout_s, start_server, servicer, drawing):
    """Calls that share requests wait for a response without a limit."""
    opened = client(start_server(servicer), timeout_s=timeout_s)
    servicer.hold()

    def begin(pixel: int) -> asyncio.Future:
        call = opened.classify
        return asyncio.ensure_future(
            asyncio.to_thread(call, drawing(pixel)) if client is Client else call(drawing(pixel))
        )

    try:
        calls = [begin(pixel) for pixel in range(1, 5)]
        await asyncio.to_thread(servicer.wait_for_rows, len(calls))  # the last calls waited, then bypassed the others
    finally:
        servicer.release()  # else the threads would wait for ever
    assert [len(each) for each in await asyncio.gather(*calls)] == [1] * len(calls)
    closed = opened.close()
    await (closed or asyncio.sleep(0))


@pytest.mark.parametrize("pushback_ms", ["9" * 12, "9" * 30, "9" * 400], ids=len)
async def test_without_a_timeout_a_pushback_of_centuries_ends_the_request(pushback_ms, start_server, servicer, drawing):
    """A server cannot make a client wait for longer than its timer can count."""
    servicer.pushbacks, servicer.pushback_ms = 10**9, pushback_ms
    with Client(start_server(servicer), timeout_s=None) as client, pytest.raises(Exception, match="full"):
        client.classify(drawing(1))


@pytest.mark.parametrize(
    "options",
    [
        *({"actors": value} for value in (0, -1, 2.5, "2", (0, 1), (2, 1), (1, 2, 3), None)),
        *({"batch_rows": value} for value in (0, -1, 2.5, "2", math.nan)),
        *({"top_k": value} for value in (-1, 2.5, "2", math.nan)),
    ],
    ids=repr,
)
async def test_the_helper_for_ray_refuses_invalid_numbers(options):
    """The error is raised before Ray is imported or a request is sent."""
    name = next(iter(options))
    assert refused(lambda: score(None, "localhost:1", **options)).startswith(f"{name} must be ")
    if name == "top_k":
        assert refused(lambda: SketchbatchScorer("localhost:1", **options)).startswith("top_k must be ")


async def test_a_short_timeout_still_ends_a_request(start_server, servicer, drawing):
    """A timeout below the limit of gRPC's timer keeps its meaning."""
    with Client(start_server(servicer), timeout_s=0.2) as client:
        client.model()
        servicer.hold()
        with pytest.raises(DeadlineExceeded, match=r"in 0\.2 s"):
            client.classify(drawing(1))
