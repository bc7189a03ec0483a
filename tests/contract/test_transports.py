"""Test both transports with grpcio's own clients: every kind of call, and every way in which a call can end."""

import asyncio
import gc
import threading
import time

import grpc
import pytest
from sketchbatch_service.transport import listening
from sketchbatch_service.transport.aio_server import AioServer
from sketchbatch_service.transport.status import cancellation_status
from transport_server import STREAM, UNARY, Echo, call_to, counted, ended_calls, frame, raw_call, rejection, run_server


async def test_a_direct_call_is_answered_from_any_thread(serving):
    """Any thread may respond to direct calls, and in another order than the calls have arrived."""
    async with serving() as (channel, echo, _):
        first, second = (asyncio.ensure_future(call_to(channel, "Direct")(text)) for text in (b"1", b"2"))
        await echo.wait_for_direct(2)
        for text, call in reversed(echo.direct):
            await asyncio.to_thread(call.respond, b"got " + text)
        assert (await first, await second) == (b"got 1", b"got 2")


async def test_a_direct_call_is_aborted_with_details_and_trailers(serving):
    """When a direct call is aborted, its client receives non-ASCII details and binary trailers unchanged."""
    async with serving() as (channel, echo, _):
        waiting = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
        await echo.wait_for_direct()
        echo.direct[0][1].abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "zu groß", (("a", "b"), ("c-bin", b"\0\xff")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "zu groß")
    assert {("a", "b"), ("c-bin", b"\0\xff")} <= set(caught.value.trailing_metadata())


async def echo_is_cancelled(echo: Echo) -> None:
    """Wait until the server has noticed that a call is cancelled, which may be later than the client's error."""
    assert await asyncio.to_thread(echo.cancelled.wait, 15)


async def cancel_direct_call(channel, echo: Echo) -> None:
    """Start a direct call, cancel the call, and wait until the server has noticed the cancellation."""
    waiting = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
    await echo.wait_for_direct()
    waiting.cancel()
    await echo_is_cancelled(echo)
    echo.cancelled.clear()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_handler_learns_of_a_cancelled_direct_call(serving):
    """When a client cancels a direct call, the `on_cancel` callback runs, and a later response is dropped."""
    async with serving() as (channel, echo, _):
        await cancel_direct_call(channel, echo)
        echo.direct[0][1].respond(b"late")
        assert await call_to(channel, "Unary")(b"still here") == b"still here"


CALLS = 5


@pytest.fixture
def no_garbage_collection():
    """Disable the garbage collector, so that only reference counting frees objects."""
    gc.disable()
    yield
    gc.enable()


async def test_cancelled_calls_do_not_count_among_a_connections_calls(serving, no_garbage_collection):
    """A cancelled call does not count towards the connection's limit, even if its handler still references the call."""
    async with serving(("grpc.max_concurrent_streams", CALLS)) as (channel, echo, _):
        for _ in range(4 * CALLS):
            await cancel_direct_call(channel, echo)
        assert len(echo.direct) == 4 * CALLS
        assert await call_to(channel, "Unary")(b"next", timeout=10) == b"next"


async def test_cancelled_streams_do_not_count_among_a_connections_calls(serving, no_garbage_collection):
    """A cancelled stream does not count towards the limit of concurrent calls of its connection."""
    async with serving(("grpc.max_concurrent_streams", CALLS)) as (channel, echo, _):
        for _ in range(4 * CALLS):
            stream = channel.stream_stream(STREAM)()
            await stream.write(b"a")
            assert await stream.read() == b"aa"
            stream.cancel()
            await asyncio.wait_for(echo.stream_ended.wait(), 5)
            echo.stream_ended.clear()
        assert await call_to(channel, "Unary")(b"next", timeout=10) == b"next"


async def test_core_frees_messages_without_the_garbage_collector(no_garbage_collection):
    """No event of the C core stays in a reference cycle, because each event references its message."""

    def events() -> int:
        return sum(type(each).__name__ == "BatchOperationEvent" for each in gc.get_objects())

    async with run_server("core") as (channel, _, _):
        before = events()
        stream = channel.stream_stream(STREAM)()
        for _ in range(20):
            await stream.write(b"a")
            assert await stream.read() == b"aa"
        for _ in range(20):
            assert await call_to(channel, "Unary")(b"x") == b"x"
        assert events() < before + 20


async def test_each_ended_call_is_counted_once_by_its_status(serving):
    """Each ended call is counted once by its status, and a response after a cancellation changes no count."""
    async with serving() as (channel, echo, server):
        unary, direct = call_to(channel, "Unary"), call_to(channel, "Direct")
        await unary(b"hello")
        for call in (unary(b"abort"), unary(b"fail"), call_to(channel, "Missing")(b"")):
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        # Only the server has this deadline of 2 s. A deadline of the client could pass before the server's. The call is
        # sent when the others have ended: logging the failed one can take long enough for the deadline to pass.
        with pytest.raises(grpc.aio.AioRpcError):
            await direct(b"x", metadata=(("grpc-timeout", "2S"),))
        await echo.wait_for_direct()
        await cancel_direct_call(channel, echo)
        stream = channel.stream_stream(STREAM)()
        await stream.write(b"a")
        await stream.read()
        stream.cancel()
        expected = {
            ("test.Echo/Unary", "OK", 1),
            ("test.Echo/Unary", "NOT_FOUND", 1),
            ("test.Echo/Unary", "UNKNOWN", 1),
            ("none", "UNIMPLEMENTED", 1),
            ("test.Echo/Direct", "DEADLINE_EXCEEDED", 1),
            ("test.Echo/Direct", "CANCELLED", 1),
            ("test.Echo/Stream", "CANCELLED", 1),
        }
        assert await ended_calls(server, 7) == expected
        for _, call in echo.direct:
            call.respond(b"late")
        assert counted(server) == expected


async def test_a_cancelled_stream_whose_handler_ends_normally_counts_as_cancelled(serving):
    """A stream that its client cancels counts as CANCELLED, even if the handler ends with another status."""
    async with serving() as (channel, _, server):
        stream = channel.stream_stream(STREAM)(metadata=(("ends-normally", "1"),))
        await stream.write(b"a")
        await stream.read()
        stream.cancel()
        assert await ended_calls(server, 1) == {("test.Echo/Stream", "CANCELLED", 1)}


@pytest.mark.parametrize(
    ("timeout_s", "remaining_s", "status"),
    [
        (0.5, 0.004, grpc.StatusCode.DEADLINE_EXCEEDED),
        (0.5, 0.1, grpc.StatusCode.CANCELLED),
        # the client's timeout is 1.0 s; gRPC sends it as 101 hundredths of a second
        (1.01, 0.01, grpc.StatusCode.DEADLINE_EXCEEDED),
        # the client's timeout is 10.05 s; gRPC sends it as 101 tenths of a second
        (10.1, 0.05, grpc.StatusCode.DEADLINE_EXCEEDED),
        # the same timeout, of a call that the server read late because the machine was busy
        (9.95, 0.277, grpc.StatusCode.DEADLINE_EXCEEDED),
        (2.35, 0.08, grpc.StatusCode.DEADLINE_EXCEEDED),
        (10.1, 0.6, grpc.StatusCode.CANCELLED),
        (0.5, 0, grpc.StatusCode.DEADLINE_EXCEEDED),
        (float("inf"), float("inf"), grpc.StatusCode.CANCELLED),
    ],
)
def test_a_cancellation_just_before_the_deadline_counts_as_the_deadline(timeout_s, remaining_s, status):
    """A cancellation shortly before the server's deadline counts as DEADLINE_EXCEEDED.

    gRPC rounds the timeout that it sends to the server up by at most 1 %, and the server's timeout starts when the
    server reads the call. So the client's deadline passes first, and the client then cancels the call.
    """
    assert cancellation_status(remaining_s=remaining_s, timeout_s=timeout_s) is status


async def test_a_call_knows_its_deadline(serving):
    """`time_remaining` returns the seconds until the deadline of the call, or infinity if the call has no deadline."""
    async with serving() as (channel, echo, _):
        waiting = [asyncio.ensure_future(call_to(channel, "Direct")(b"x", timeout=t)) for t in (1000, None)]
        await echo.wait_for_direct(2)
        remaining = sorted(call.time_remaining() for _, call in echo.direct)
        for _, call in echo.direct:
            call.respond(b"")
        await asyncio.gather(*waiting)
    assert 900 < remaining[0] < 1100
    assert remaining[1] > 1e9


@pytest.mark.parametrize(
    ("method", "code", "details"),
    [
        ("Missing", grpc.StatusCode.UNIMPLEMENTED, "no such method"),
        ("Picky", grpc.StatusCode.INVALID_ARGUMENT, "not the protobuf message of this method: no such field"),
    ],
)
async def test_a_call_that_cannot_be_handled_is_rejected(serving, method, code, details):
    """A call of an unknown method receives UNIMPLEMENTED, and a call with invalid bytes receives INVALID_ARGUMENT."""
    async with serving() as (channel, _, _):
        with pytest.raises(grpc.aio.AioRpcError, match=details) as caught:
            await call_to(channel, method)(b"x")
    assert caught.value.code() is code


async def test_a_unary_call_without_a_message_is_rejected(serving):
    """A unary call that ends without a message is rejected at once, whether its handler is direct or a coroutine."""
    async with serving() as (channel, _, _):
        for method in ("Direct", "Unary"):
            empty = channel.stream_unary(f"/test.Echo/{method}")
            with pytest.raises(grpc.aio.AioRpcError, match="a request was expected, got none"):
                await empty([])


async def test_a_coroutine_answers_aborts_or_fails(serving):
    """A coroutine handler can respond, read and set metadata, abort, or fail.

    The client never receives the text of an unexpected exception.
    """
    async with serving() as (channel, _, _):
        unary = call_to(channel, "Unary")
        call = unary(b"hello", metadata=(("mark", "1"),))
        assert await call == b"hello with mark"
        assert ("end", "good") in tuple(await call.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError) as aborted:
            await unary(b"abort")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"fail")
    assert (aborted.value.code(), aborted.value.details()) == (grpc.StatusCode.NOT_FOUND, "none")
    assert ("why", "test") in tuple(aborted.value.trailing_metadata())
    assert failed.value.code() is grpc.StatusCode.UNKNOWN
    assert "secret" not in failed.value.details()


async def test_a_stream_flows_in_both_directions(serving):
    """Each message receives its response before the next message is read, and the client ends the stream."""
    async with serving() as (channel, echo, _):
        stream = channel.stream_stream(STREAM)()
        for text in (b"a", b"bc"):
            await stream.write(text)
            assert await stream.read() == text * 2
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        assert echo.stream_ended.is_set()


async def test_a_cancelled_stream_ends_its_handler(serving):
    """When a client cancels a stream, the handler's `finally` runs, even if the handler was waiting for a message."""
    async with serving() as (channel, echo, _):
        stream = channel.stream_stream(STREAM)()
        await stream.write(b"a")
        await stream.read()
        stream.cancel()
        await asyncio.wait_for(echo.stream_ended.wait(), 5)


async def test_open_calls_may_end_while_the_server_stops(serving):
    """While the server stops, a response still reaches its client; a forced stop cancels the remaining calls."""
    async with serving(stops=False) as (channel, echo, server):
        answered, unanswered = (asyncio.ensure_future(call_to(channel, "Direct")(text)) for text in (b"1", b"2"))
        await echo.wait_for_direct(2)
        forced = asyncio.get_running_loop().create_future()
        stopping = asyncio.ensure_future(server.stop(60, forced))
        await rejection(call_to(channel, "Unary")(b""))  # the rejected call shows that the stop has begun
        next(call for text, call in echo.direct if text == b"1").respond(b"in time")
        assert await answered == b"in time"
        assert not stopping.done()
        forced.set_result(None)
        await stopping
        await rejection(unanswered)
        await echo_is_cancelled(echo)


async def test_calls_that_are_open_after_the_grace_are_cancelled(serving):
    """`stop` cancels calls that are still open after the grace period, and returns although they got no response."""
    async with serving(stops=False) as (channel, echo, server):
        unanswered = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
        await echo.wait_for_direct()
        await server.stop(0.01)
        await rejection(unanswered)
        await echo_is_cancelled(echo)


async def test_new_calls_are_rejected_with_unavailable_while_the_server_stops(serving, monkeypatch):
    """While a stopping server waits for open calls, a new call receives UNAVAILABLE and is counted.

    The client can then try another server.
    """
    monkeypatch.setattr(listening, "REJECTION_S", 2.0)  # enough for the new call on a busy machine
    async with serving(stops=False) as (channel, echo, server):
        answered = asyncio.ensure_future(call_to(channel, "Direct")(b"1"))
        await echo.wait_for_direct()
        stopping = asyncio.ensure_future(server.stop(60))
        await asyncio.sleep(0)  # the stop has begun
        error = await rejection(call_to(channel, "Unary")(b""))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "this replica is draining; another will answer",
        )
        assert await ended_calls(server, 1) == {("none", "UNAVAILABLE", 1)}
        echo.direct[0][1].respond(b"in time")
        assert await answered == b"in time"
        await stopping


async def test_a_call_without_the_right_metadata_is_rejected_unread(serving):
    """A call that the authenticator rejects receives UNAUTHENTICATED with the reason, and reaches no method."""

    def authenticate(path: bytes, metadata) -> str | None:
        return None if ("word", "open") in list(metadata) else f"no word for {path.decode()}"

    async with serving(authenticate=authenticate) as (channel, _, server):
        for method in (UNARY, "/test.Echo/Missing"):
            error = await rejection(channel.unary_unary(method)(b"x"))
            assert (error.code(), error.details()) == (grpc.StatusCode.UNAUTHENTICATED, f"no word for {method}")
        assert await channel.stream_stream(STREAM)().code() is grpc.StatusCode.UNAUTHENTICATED
        assert await call_to(channel, "Unary")(b"x", metadata=(("word", "open"),)) == b"x"
        assert await ended_calls(server, 4) == {("none", "UNAUTHENTICATED", 3), ("test.Echo/Unary", "OK", 1)}


@pytest.mark.parametrize("method", ["Direct", "Unary"])
async def test_a_call_that_is_cancelled_before_its_message_counts_as_cancelled(serving, method):
    """A call that the client resets before its message is counted as CANCELLED, not as an invalid request."""
    has_arrived = threading.Event()
    async with serving(authenticate=lambda path, metadata: has_arrived.set()) as (_, echo, server):
        host, _, port = echo.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw_call(f"/test.Echo/{method}"))
        assert await asyncio.to_thread(has_arrived.wait, 10)
        writer.write(frame(3, 0, 1, (8).to_bytes(4, "big")))  # RST_STREAM with the error code CANCEL
        assert await ended_calls(server, 1) == {(f"test.Echo/{method}", "CANCELLED", 1)}
        writer.close()


@pytest.mark.parametrize("method", ["Direct", "Unary"])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_above_the_limit_is_counted_without_a_handler(serving, method, compression):
    """A message above the limit reaches no handler, because gRPC itself rejects it with RESOURCE_EXHAUSTED.

    The transport `core` counts this status. The public interface of grpcio does not distinguish such a call from a
    cancelled one, so the transport `aio` counts it as CANCELLED.
    """
    async with serving(("grpc.max_receive_message_length", 1000)) as (channel, _, server):
        error = await rejection(call_to(channel, method)(bytes(200_000), compression=compression))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        counted_code = "CANCELLED" if isinstance(server, AioServer) else "RESOURCE_EXHAUSTED"
        assert await ended_calls(server, 1) == {(f"test.Echo/{method}", counted_code, 1)}


async def code_of(call) -> str:
    """Return the name of the status that the client of a unary call receives."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def code_of_stream(channel, *messages: bytes, **options) -> str:
    """Return the name of the status that the client of a stream receives, after a response to each message."""
    stream = channel.stream_stream(STREAM)(**options)
    for message in messages:
        await stream.write(message)
        assert await stream.read()
    if "timeout" not in options:
        await stream.done_writing()
    return (await stream.code()).name


async def code_of_direct(channel, echo: Echo, **options) -> str:
    """Return the name of the status that the client of a direct call receives; the call is never answered."""
    waiting = asyncio.ensure_future(code_of(call_to(channel, "Direct")(b"x", **options)))
    await echo.wait_for_direct()
    return await waiting


@pytest.mark.parametrize(
    ("expected", "calls"),
    {
        "OK": [
            ("Unary", lambda channel, _: code_of(call_to(channel, "Unary")(b"x"))),
            ("Stream", lambda channel, _: code_of_stream(channel, b"x", b"y")),
        ],
        "NOT_FOUND": [("Unary", lambda channel, _: code_of(call_to(channel, "Unary")(b"abort")))],
        "UNKNOWN": [("Unary", lambda channel, _: code_of(call_to(channel, "Unary")(b"fail")))],
        "INVALID_ARGUMENT": [
            ("Picky", lambda channel, _: code_of(call_to(channel, "Picky")(b"x"))),
            ("Direct", lambda channel, _: code_of(channel.stream_unary("/test.Echo/Direct")([]))),
            ("Unary", lambda channel, _: code_of(channel.stream_unary("/test.Echo/Unary")([]))),
        ],
        "UNIMPLEMENTED": [("none", lambda channel, _: code_of(call_to(channel, "Missing")(b"x")))],
        "UNAUTHENTICATED": [
            ("none", lambda channel, _: code_of(call_to(channel, "Unary")(b"x", metadata=(("reject", "1"),))))
        ],
        "DEADLINE_EXCEEDED": [
            ("Direct", lambda channel, echo: code_of_direct(channel, echo, timeout=2.0)),
            ("Stream", lambda channel, _: code_of_stream(channel, b"x", timeout=2.0)),
        ],
    }.items(),
)
async def test_a_call_counts_with_the_status_that_its_client_receives(serving, expected, calls):
    """The status that counts is the status that the client receives, and each call adds one time to its histogram."""

    def authenticate(path: bytes, metadata) -> str | None:
        return "rejected" if ("reject", "1") in list(metadata) else None

    async with serving(authenticate=authenticate) as (channel, echo, server):
        for _, call in calls:
            assert await call(channel, echo) == expected
        names = [name if name == "none" else f"test.Echo/{name}" for name, _ in calls]
        assert await ended_calls(server, len(calls)) == {(name, expected, 1) for name in names}


@pytest.mark.parametrize("is_forced", [True, False])
async def test_a_call_that_a_stopping_server_cancels_counts_as_unavailable(serving, is_forced):
    """A call that is open at the end of a stop receives UNAVAILABLE, and counts as UNAVAILABLE."""
    async with serving(stops=False) as (channel, echo, server):
        direct = asyncio.ensure_future(code_of(call_to(channel, "Direct")(b"x")))
        await echo.wait_for_direct()
        stream = channel.stream_stream(STREAM)()
        await stream.write(b"x")
        assert await stream.read() == b"xx"
        forced = asyncio.get_running_loop().create_future()
        if is_forced:
            forced.set_result(None)
        await server.stop(60 if is_forced else 0, forced)
        assert (await direct, (await stream.code()).name) == ("UNAVAILABLE", "UNAVAILABLE")
        expected = {("test.Echo/Direct", "UNAVAILABLE", 1), ("test.Echo/Stream", "UNAVAILABLE", 1)}
        assert await ended_calls(server, 2) == expected


async def test_a_response_that_cannot_be_sent_counts_as_cancelled():
    """A response to a call that the client has cancelled counts as CANCELLED, although the handler has responded.

    The polling thread is held in another call meanwhile, so that the handler does not learn of the cancellation.
    """
    is_held, released = threading.Event(), threading.Event()

    def authenticate(path: bytes, metadata) -> str | None:
        if path.endswith(b"/Missing"):
            is_held.set()
            assert released.wait(10)
        return None

    async with run_server("core", authenticate=authenticate) as (channel, echo, server):
        host, _, port = echo.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        empty_message = frame(0, 1, 1, bytes(5))
        writer.write(raw_call("/test.Echo/Direct") + empty_message)
        await echo.wait_for_direct()
        holding = asyncio.ensure_future(rejection(call_to(channel, "Missing")(b"")))
        assert await asyncio.to_thread(is_held.wait, 10)
        cancel, ping = frame(3, 0, 1, (8).to_bytes(4, "big")), frame(6, 0, 0, b"12345678")
        writer.write(cancel + ping)
        await asyncio.wait_for(reader.readuntil(frame(6, 1, 0, b"12345678")), 10)  # gRPC has read the cancellation
        echo.direct[0][1].respond(b"late")
        released.set()
        await holding
        assert ("test.Echo/Direct", "CANCELLED", 1) in await ended_calls(server, 2)
        writer.close()


async def test_the_time_of_a_call_ends_with_its_response(serving):
    """The time of a call lasts from its arrival to its response; a call that is open has no time yet."""
    async with serving() as (channel, echo, server):
        waiting = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
        await echo.wait_for_direct()
        arrived_at = time.monotonic()
        assert counted(server) == set()
        await call_to(channel, "Unary")(b"x")
        waited_s = time.monotonic() - arrived_at
        echo.direct[0][1].respond(b"")
        await waiting
        await ended_calls(server, 2)
        times = {method: times for method, _, times in server.call_ends.histograms()}
        assert times["test.Echo/Direct"].seconds > waited_s > 0
        assert times["test.Echo/Direct"].total().count == times["test.Echo/Unary"].total().count == 1
