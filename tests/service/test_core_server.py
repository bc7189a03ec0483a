"""The gRPC server on grpcio's C core, against grpcio's own clients: every kind of call, and every way it can end."""

import asyncio
import gc
import threading
from contextlib import asynccontextmanager

import grpc
import pytest
from sketchbatch_service.transport.core_call import AsyncCall, DirectCall
from sketchbatch_service.transport.core_server import CoreServer

UNARY, STREAM = "/test.Echo/Unary", "/test.Echo/Stream"


class Echo(grpc.GenericRpcHandler):
    """Answers bytes; `direct` calls are kept until the test answers them."""

    def __init__(self) -> None:
        self.direct: list[tuple[bytes, DirectCall]] = []
        self.came = threading.Semaphore(0)
        self.left = threading.Event()
        self.ended = asyncio.Event()

    def service(self, details):
        return {
            "/test.Echo/Direct": grpc.unary_unary_rpc_method_handler(self.keep, bytes, bytes),
            "/test.Echo/Picky": grpc.unary_unary_rpc_method_handler(self.keep, refusing, bytes),
            UNARY: grpc.unary_unary_rpc_method_handler(self.unary, bytes, bytes),
            STREAM: grpc.stream_stream_rpc_method_handler(self.stream, bytes, bytes),
        }.get(details.method)

    def keep(self, request: bytes, call: DirectCall) -> None:
        call.on_cancel(self.left.set)
        self.direct.append((request, call))
        self.came.release()

    async def unary(self, request: bytes, context: AsyncCall) -> bytes:
        if request == b"break":
            raise RuntimeError("secret")
        if request == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "none", (("why", "test"),))
        context.set_trailing_metadata((("end", "good"),))
        names = [key for key, _ in context.invocation_metadata()]
        return request + (b" with mark" if "mark" in names else b"")

    async def stream(self, requests, context: AsyncCall):
        try:
            async for request in requests:
                yield request * 2
        finally:
            self.ended.set()


def refusing(message: bytes) -> bytes:
    raise ValueError("no such field")


@asynccontextmanager
async def serving(*options: tuple[str, int], stops: bool = True):
    """A server, watched by one thread, and a channel to it; stopped at the end, unless the test does it."""
    echo, server = Echo(), CoreServer(options)
    server.add_generic_rpc_handlers([echo])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    def keep_watch() -> None:
        while server.poll(blocks=True):
            pass

    watcher = threading.Thread(target=keep_watch)
    watcher.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel, echo, server
    finally:
        if stops:
            await server.stop(5)
        server.close()
        await asyncio.to_thread(watcher.join)


def call_to(channel, method: str):
    return channel.unary_unary(f"/test.Echo/{method}")


async def test_a_direct_call_is_answered_from_any_thread():
    """Calls end in the order they are answered, not that in which they came."""
    async with serving() as (channel, echo, _):
        first, second = (asyncio.ensure_future(call_to(channel, "Direct")(text)) for text in (b"1", b"2"))
        for _ in range(2):
            assert await asyncio.to_thread(echo.came.acquire, timeout=5)
        for text, call in reversed(echo.direct):
            await asyncio.to_thread(call.respond, b"got " + text)
        assert (await first, await second) == (b"got 1", b"got 2")


async def test_a_direct_call_can_be_refused_with_details_and_trailers():
    """Text beyond ASCII and binary trailers come through."""
    async with serving() as (channel, echo, _):
        waiting = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
        assert await asyncio.to_thread(echo.came.acquire, timeout=5)
        echo.direct[0][1].abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "zu groß", (("a", "b"), ("c-bin", b"\0\xff")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "zu groß")
    assert {("a", "b"), ("c-bin", b"\0\xff")} <= set(caught.value.trailing_metadata())


async def test_a_caller_that_leaves_a_direct_call_is_heard_of():
    """Its work can be withdrawn; an answer that comes all the same harms nobody."""
    async with serving() as (channel, echo, _):
        leaver = call_to(channel, "Direct")(b"x")
        waiting = asyncio.ensure_future(leaver)
        assert await asyncio.to_thread(echo.came.acquire, timeout=5)
        leaver.cancel()
        assert await asyncio.to_thread(echo.left.wait, 5)
        echo.direct[0][1].respond(b"late")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await call_to(channel, "Unary")(b"still here") == b"still here"


CALLS = 5


@pytest.fixture
def no_collection():
    """Python looks for no circles meanwhile."""
    gc.disable()
    yield
    gc.enable()


async def test_calls_that_were_left_count_no_more(no_collection):
    """Of those that a connection may hold; even while their work is kept, and before Python looks for circles."""
    async with serving(("grpc.max_concurrent_streams", CALLS)) as (channel, echo, _):
        for _ in range(4 * CALLS):
            leaver = call_to(channel, "Direct")(b"x")
            assert await asyncio.to_thread(echo.came.acquire, timeout=5)
            leaver.cancel()
            assert await asyncio.to_thread(echo.left.wait, 5)
            echo.left.clear()
        assert len(echo.direct) == 4 * CALLS
        assert await call_to(channel, "Unary")(b"next", timeout=1) == b"next"


async def test_streams_that_were_left_count_no_more(no_collection):
    """Likewise."""
    async with serving(("grpc.max_concurrent_streams", CALLS)) as (channel, echo, _):
        for _ in range(4 * CALLS):
            stream = channel.stream_stream(STREAM)()
            await stream.write(b"a")
            assert await stream.read() == b"aa"
            stream.cancel()
            await asyncio.wait_for(echo.ended.wait(), 5)
            echo.ended.clear()
        assert await call_to(channel, "Unary")(b"next", timeout=1) == b"next"


async def test_messages_are_let_go_of_at_once(no_collection):
    """No event of the C core stays in a circle, with the message that it brought."""

    def events() -> int:
        return sum(type(each).__name__ == "BatchOperationEvent" for each in gc.get_objects())

    async with serving() as (channel, _, _):
        before = events()
        stream = channel.stream_stream(STREAM)()
        for _ in range(20):
            await stream.write(b"a")
            assert await stream.read() == b"aa"
        for _ in range(20):
            assert await call_to(channel, "Unary")(b"x") == b"x"
        assert events() < before + 20


async def test_how_each_call_ended_is_counted_once():
    """Answered, aborted, broken, unknown; left, whatever is answered then; out of time; and a stream at its end."""
    async with serving() as (channel, echo, server):
        unary, direct = call_to(channel, "Unary"), call_to(channel, "Direct")
        await unary(b"hello")
        for call in (unary(b"abort"), unary(b"break"), call_to(channel, "Missing")(b""), direct(b"x", timeout=0.1)):
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        leaver, stream = direct(b"x"), channel.stream_stream(STREAM)()
        waiting = asyncio.ensure_future(leaver)
        for _ in range(2):
            assert await asyncio.to_thread(echo.came.acquire, timeout=5)
        await stream.write(b"a")
        await stream.read()
        leaver.cancel()
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        expected = {
            ("test.Echo/Unary", "OK", 1),
            ("test.Echo/Unary", "NOT_FOUND", 1),
            ("test.Echo/Unary", "UNKNOWN", 1),
            ("none", "UNIMPLEMENTED", 1),
            ("test.Echo/Direct", "DEADLINE_EXCEEDED", 1),
            ("test.Echo/Direct", "CANCELLED", 1),
            ("test.Echo/Stream", "CANCELLED", 1),
        }
        while set(server.call_ends()) != expected:
            await asyncio.sleep(0.01)
        for _, call in echo.direct:
            call.respond(b"late")
        assert set(server.call_ends()) == expected


async def test_a_call_knows_its_deadline():
    """In seconds from now; without one there is no end."""
    async with serving() as (channel, echo, _):
        waiting = [asyncio.ensure_future(call_to(channel, "Direct")(b"x", timeout=t)) for t in (30, None)]
        for _ in waiting:
            assert await asyncio.to_thread(echo.came.acquire, timeout=5)
        remaining = sorted(call.time_remaining() for _, call in echo.direct)
        for _, call in echo.direct:
            call.respond(b"")
        await asyncio.gather(*waiting)
    assert 25 < remaining[0] < 31  # by the clock of the day, which may be set meanwhile
    assert remaining[1] > 1e9


@pytest.mark.parametrize(
    ("method", "code", "details"),
    [
        ("Missing", grpc.StatusCode.UNIMPLEMENTED, "no such method"),
        ("Picky", grpc.StatusCode.INVALID_ARGUMENT, "not the protobuf message of this method: no such field"),
    ],
)
async def test_what_cannot_be_handled_is_refused(method, code, details):
    """An unknown method and bytes that are no request are the caller's mistake, and say so."""
    async with serving() as (channel, _, _):
        with pytest.raises(grpc.aio.AioRpcError, match=details) as caught:
            await call_to(channel, method)(b"x")
    assert caught.value.code() is code


async def test_a_unary_call_without_a_message_is_refused():
    """It is over at once, on either kind of handler."""
    async with serving() as (channel, _, _):
        for method in ("Direct", "Unary"):
            empty = channel.stream_unary(f"/test.Echo/{method}")
            with pytest.raises(grpc.aio.AioRpcError, match="a request was expected, got none"):
                await empty([])


async def test_a_coroutine_answers_aborts_or_breaks():
    """With metadata both ways; what broke it is for the log alone."""
    async with serving() as (channel, _, _):
        unary = call_to(channel, "Unary")
        call = unary(b"hello", metadata=(("mark", "1"),))
        assert await call == b"hello with mark"
        assert ("end", "good") in tuple(await call.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError) as aborted:
            await unary(b"abort")
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await unary(b"break")
    assert (aborted.value.code(), aborted.value.details()) == (grpc.StatusCode.NOT_FOUND, "none")
    assert ("why", "test") in tuple(aborted.value.trailing_metadata())
    assert broken.value.code() is grpc.StatusCode.UNKNOWN
    assert "secret" not in broken.value.details()


async def test_a_stream_flows_both_ways():
    """Each message is answered before the next is asked for, and the end is the caller's."""
    async with serving() as (channel, echo, _):
        stream = channel.stream_stream(STREAM)()
        for text in (b"a", b"bc"):
            await stream.write(text)
            assert await stream.read() == text * 2
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        assert echo.ended.is_set()


async def test_a_cancelled_stream_ends_its_handler():
    """The handler's `finally` runs although it was waiting for a message."""
    async with serving() as (channel, echo, _):
        stream = channel.stream_stream(STREAM)()
        await stream.write(b"a")
        await stream.read()
        stream.cancel()
        await asyncio.wait_for(echo.ended.wait(), 5)


async def test_stopping_lets_calls_end_and_cancels_the_last_after_the_grace():
    """An answer given in time arrives; a call that nobody answers is cut off, and the stop returns."""
    async with serving(stops=False) as (channel, echo, server):
        answered, forgotten = (asyncio.ensure_future(call_to(channel, "Direct")(text)) for text in (b"1", b"2"))
        for _ in range(2):
            assert await asyncio.to_thread(echo.came.acquire, timeout=5)
        first = next(call for text, call in echo.direct if text == b"1")
        asyncio.get_running_loop().call_later(0.05, first.respond, b"in time")  # while the server stops
        await server.stop(0.5)
        assert await answered == b"in time"
        with pytest.raises(grpc.aio.AioRpcError):
            await forgotten
        assert echo.left.is_set()


async def test_a_port_in_use_is_an_error():
    """It is not shared in silence."""
    async with serving() as (_, _, server):
        port = server.add_insecure_port("127.0.0.1:0")
        other = CoreServer([("grpc.so_reuseport", 0)])
        with pytest.raises(RuntimeError, match=f"cannot bind 127.0.0.1:{port}"):
            other.add_insecure_port(f"127.0.0.1:{port}")
