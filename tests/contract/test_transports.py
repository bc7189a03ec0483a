"""Test both transports with grpcio's own clients: every kind of call, and every way in which a call can end."""

import asyncio
import gc
import socket
import threading
from contextlib import asynccontextmanager, suppress
from functools import partial

import grpc
import pytest
from sketchbatch_service.errors import AddressUnusable
from sketchbatch_service.transport.interface import Context, Server, UnaryCall, wants_gzip
from sketchbatch_service.transport.selection import create_server
from sketchbatch_service.transport.status import cancellation_status

UNARY, STREAM = "/test.Echo/Unary", "/test.Echo/Stream"


class Echo(grpc.GenericRpcHandler):
    """Echo the bytes of a call; the list `direct` keeps direct calls until the test answers them."""

    def __init__(self) -> None:
        self.direct: list[tuple[bytes, UnaryCall]] = []
        self.arrived = threading.Semaphore(0)
        self.cancelled = threading.Event()
        self.stream_ended = asyncio.Event()

    def service(self, details):
        return {
            "/test.Echo/Direct": grpc.unary_unary_rpc_method_handler(self.keep, bytes, bytes),
            "/test.Echo/Picky": grpc.unary_unary_rpc_method_handler(self.keep, parse_nothing, bytes),
            UNARY: grpc.unary_unary_rpc_method_handler(self.unary, bytes, bytes),
            STREAM: grpc.stream_stream_rpc_method_handler(self.stream, bytes, bytes),
        }.get(details.method)

    def keep(self, request: bytes, call: UnaryCall) -> None:
        call.on_cancel(self.cancelled.set)
        self.direct.append((request, call))
        self.arrived.release()

    async def unary(self, request: bytes, context: Context) -> bytes:
        if request == b"fail":
            raise RuntimeError("secret")
        if request == b"abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "none", (("why", "test"),))
        context.set_trailing_metadata((("end", "good"),))
        names = [key for key, _ in context.invocation_metadata()]
        return request + (b" with mark" if "mark" in names else b"")

    async def stream(self, requests, context: Context):
        names = [key for key, _ in context.invocation_metadata()]
        try:
            async for request in requests:
                yield request * 2
        except asyncio.CancelledError:
            if "ends-normally" not in names:
                raise
        finally:
            self.stream_ended.set()

    async def wait_for_direct(self, calls: int = 1) -> None:
        """Wait until `calls` more direct calls have arrived."""
        for _ in range(calls):
            assert await asyncio.to_thread(self.arrived.acquire, timeout=5)


def parse_nothing(message: bytes) -> bytes:
    raise ValueError("no such field")


@asynccontextmanager
async def run_server(
    transport: str, *options: tuple[str, int], stops: bool = True, address: str = "127.0.0.1:0", authenticate=None
):
    """Run a server, with one polling thread if the transport needs it; yield a channel, its handler and the server.

    With `stops=False`, the test stops the server itself.
    """
    echo, server = Echo(), create_server(transport, options, authenticate)
    server.add_generic_rpc_handlers([echo])
    echo.address = bound = server.listen(address)
    await server.start()

    def poll_until_closed() -> None:
        while server.source.poll(blocks=True):
            pass

    poller = threading.Thread(target=poll_until_closed) if server.source else None
    if poller:
        poller.start()
    try:
        async with grpc.aio.insecure_channel(bound) as channel:
            yield channel, echo, server
    finally:
        if stops:
            await server.stop(5)
        if poller:
            server.source.close()
            await asyncio.to_thread(poller.join)


@pytest.fixture(params=["aio", "core"])
def serving(request):
    """Return `run_server` of one transport; a test that uses this fixture runs once with each transport."""
    return partial(run_server, request.param)


def call_to(channel, method: str):
    return channel.unary_unary(f"/test.Echo/{method}")


async def test_a_direct_call_is_answered_from_any_thread(serving):
    """Direct calls end in the order of their responses from any thread, not in the order of their arrival."""
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


async def cancel_direct_call(channel, echo: Echo) -> None:
    """Start a direct call, cancel the call, and wait until the server has noticed the cancellation."""
    waiting = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
    await echo.wait_for_direct()
    waiting.cancel()
    assert await asyncio.to_thread(echo.cancelled.wait, 5)
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
    """A cancelled call does not count towards the connection's limit, even while its handler holds the call object."""
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
    """No event of the C core, which references its message, stays in a reference cycle."""

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


async def ended_calls(server: Server, number: int) -> set[tuple[str, str, int]]:
    """Return the number of ended calls by method and status, once `number` calls have ended."""
    async with asyncio.timeout(10):
        while sum(count for _, _, count in server.call_ends()) < number:
            await asyncio.sleep(0.001)
    return set(server.call_ends())


async def test_each_ended_call_is_counted_once_by_its_status(serving):
    """Each ended call is counted once by its status, and a response after a cancellation changes no count."""
    async with serving() as (channel, echo, server):
        unary, direct = call_to(channel, "Unary"), call_to(channel, "Direct")
        await unary(b"hello")
        # a deadline of 2 s that only the server has, because a deadline of the client could pass first
        server_deadline = (("grpc-timeout", "2S"),)
        for call in (
            unary(b"abort"),
            unary(b"fail"),
            call_to(channel, "Missing")(b""),
            direct(b"x", metadata=server_deadline),
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await call
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
        assert set(server.call_ends()) == expected


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
        (1.01, 0.01, grpc.StatusCode.DEADLINE_EXCEEDED),  # 1.0 s, which gRPC sends as 101 hundredths of a second
        (10.1, 0.05, grpc.StatusCode.DEADLINE_EXCEEDED),  # 10.05 s, which gRPC sends as 101 tenths of a second
        (10.1, 5, grpc.StatusCode.CANCELLED),
        (0.5, 0, grpc.StatusCode.DEADLINE_EXCEEDED),
        (float("inf"), float("inf"), grpc.StatusCode.CANCELLED),
    ],
)
def test_a_cancellation_just_before_the_deadline_counts_as_the_deadline(timeout_s, remaining_s, status):
    """A cancellation shortly before the server's deadline counts as DEADLINE_EXCEEDED.

    The client's deadline passes before the server's deadline, because gRPC rounds `grpc-timeout` up by at most 1 %.
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
    """An unknown method receives UNIMPLEMENTED, and bytes that are not a request receive INVALID_ARGUMENT."""
    async with serving() as (channel, _, _):
        with pytest.raises(grpc.aio.AioRpcError, match=details) as caught:
            await call_to(channel, method)(b"x")
    assert caught.value.code() is code


async def test_a_unary_call_without_a_message_is_rejected(serving):
    """A unary call that ends without a message is rejected at once, by direct handlers and by coroutine handlers."""
    async with serving() as (channel, _, _):
        for method in ("Direct", "Unary"):
            empty = channel.stream_unary(f"/test.Echo/{method}")
            with pytest.raises(grpc.aio.AioRpcError, match="a request was expected, got none"):
                await empty([])


async def test_a_coroutine_answers_aborts_or_fails(serving):
    """Metadata travels in both directions, and the client never receives the text of an unexpected exception."""
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
        assert echo.cancelled.is_set()


async def rejection(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_calls_that_are_open_after_the_grace_are_cancelled(serving):
    """`stop` cancels calls that are still open after the grace period, and returns although no thread answered them."""
    async with serving(stops=False) as (channel, echo, server):
        unanswered = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
        await echo.wait_for_direct()
        await server.stop(0.01)
        await rejection(unanswered)
        assert echo.cancelled.is_set()


async def test_new_calls_are_rejected_with_unavailable_while_the_server_stops(serving):
    """While open calls end, a new call receives UNAVAILABLE, so that a client tries another server, and is counted."""
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
        assert ("none", "UNAVAILABLE", 1) in set(server.call_ends())
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


ZEROS = bytes(1 << 20)


@asynccontextmanager
async def counting_bytes(address: str):
    """Forward connections to `address`; yield the forwarder's address, and the list of sizes that the server sent."""
    sizes: list[int] = []
    host, _, port = address.rpartition(":")

    forwards: list[asyncio.Task] = []

    async def copy(reader, writer, counted: list[int]) -> None:
        while chunk := await reader.read(1 << 16):
            counted.append(len(chunk))
            writer.write(chunk)

    async def forward(reader, writer) -> None:
        forwards.append(asyncio.current_task())
        from_server, to_server = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(copy(reader, to_server, []), copy(from_server, writer, sizes))
        finally:
            for each in (writer, to_server):
                each.close()
                await each.wait_closed()

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as forwarder:
        yield f"127.0.0.1:{forwarder.sockets[0].getsockname()[1]}", sizes
        for each in forwards:  # grpcio may keep the connection of a closed channel for a while
            each.cancel()
        await asyncio.gather(*forwards, return_exceptions=True)


@pytest.mark.parametrize("method", ["Direct", "Unary"])
async def test_responses_are_compressed_if_the_client_asks_for_it(serving, method):
    """A compressed request is accepted; the response is compressed only if the metadata has `accept-encoding: gzip`."""
    received = {}
    async with serving() as (_, echo, _), counting_bytes(echo.address) as (address, sizes):
        for metadata in ((), (("accept-encoding", "gzip"),)):
            async with grpc.aio.insecure_channel(address) as channel:
                sizes.clear()
                call = call_to(channel, method)(ZEROS, metadata=metadata, compression=grpc.Compression.Gzip)
                waiting = asyncio.ensure_future(call)
                if method == "Direct":
                    await echo.wait_for_direct()
                    echo.direct[-1][1].respond(ZEROS)
                assert await waiting == ZEROS
                received[bool(metadata)] = sum(sizes)
    assert received[False] > len(ZEROS)
    assert received[True] < len(ZEROS) / 20


async def test_a_compressed_message_may_not_grow_beyond_the_limit(serving):
    """A compressed message that is larger than the limit once decompressed is rejected, and not kept in memory."""
    async with serving(("grpc.max_receive_message_length", len(ZEROS))) as (channel, _, _):
        unary = call_to(channel, "Unary")
        error = await rejection(unary(10 * ZEROS, compression=grpc.Compression.Gzip))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await unary(b"next") == b"next"


async def test_a_unix_socket_is_served_and_removed(serving, tmp_path):
    """A server listens on a socket file, replaces a stale one, refuses one in use, and removes its own at the end."""
    path = tmp_path / "service.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # the file stays when its process ends without removing it
    async with serving(address=f"unix:{path}") as (channel, _, _):
        assert await call_to(channel, "Unary")(b"x") == b"x"
        with pytest.raises(AddressUnusable, match="another process listens on it"):
            create_server(serving.args[0]).listen(f"unix:{path}")
        assert await call_to(channel, "Unary")(b"x") == b"x"
    assert not path.exists()


async def test_a_path_that_cannot_be_a_socket_is_an_error(serving, tmp_path):
    """A file that is no socket stays as it is, and a missing folder is an error."""
    file = tmp_path / "notes.txt"
    file.write_text("keep")
    for address, reason in ((f"unix:{file}", "is not a socket"), (f"unix:{tmp_path}/a/b", "the folder must exist")):
        with pytest.raises(AddressUnusable, match=reason):
            create_server(serving.args[0]).listen(address)
    assert file.read_text() == "keep"


@pytest.mark.parametrize(("address", "hosts"), [("[::1]:0", ["[::1]"]), ("[::]:0", ["[::1]", "127.0.0.1"])])
async def test_ipv6_addresses_are_served(serving, address, hosts):
    """A server listens on an IPv6 address, and `[::]` accepts IPv4 connections, too."""
    async with serving(address=address) as (_, echo, _):
        host, _, port = echo.address.rpartition(":")
        assert f"{host}:0" == address
        for host in hosts:
            async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
                assert await call_to(channel, "Unary")(b"x") == b"x"


async def test_a_call_whose_path_is_not_utf8_does_not_stop_the_server(serving, root):
    """After a call whose path is not UTF-8, the server answers at the same address.

    On `aio`, grpcio's server fails, its open calls end with CANCELLED or UNAVAILABLE, and a new server takes the port.
    """
    async with serving() as (channel, echo, _):
        host, _, port = echo.address.rpartition(":")
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write((root / "tests/fuzz/corpus/grpc/path-is-no-utf8").read_bytes())
            writer.write_eof()
            with suppress(ConnectionResetError):
                await reader.read()
            writer.close()
            await wait_for_answer(channel)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def raw_call(path: str) -> bytes:
    """Return the bytes that open a connection and start a call on stream 1, which sends no message."""
    headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    headers["content-type"] = "application/grpc"
    block = b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in headers.items()
    )
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block)


async def test_an_open_stream_does_not_keep_a_failed_server_from_answering_again(serving, root):
    """After a call whose path is not UTF-8, the server answers although another client's stream stays open.

    That client ignores GOAWAY, so only the server can end its stream.
    """
    async with serving() as (channel, echo, _):
        host, _, port = echo.address.rpartition(":")
        _, patient = await asyncio.open_connection(host, int(port))
        patient.write(raw_call(STREAM))
        await wait_for_answer(channel)
        _, hostile = await asyncio.open_connection(host, int(port))
        hostile.write((root / "tests/fuzz/corpus/grpc/path-is-no-utf8").read_bytes())
        await asyncio.wait_for(wait_for_failure_or_answers(channel), 10)
        for writer in (patient, hostile):
            writer.close()


async def wait_for_failure_or_answers(channel) -> None:
    """Call for a second, in which the server may fail, and then until a call succeeds."""
    for _ in range(10):
        with suppress(grpc.aio.AioRpcError):
            await call_to(channel, "Unary")(b"x", timeout=1)
        await asyncio.sleep(0.1)
    await wait_for_answer(channel)


@pytest.mark.parametrize("method", ["Direct", "Unary"])
async def test_a_call_that_is_cancelled_before_its_message_counts_as_cancelled(serving, method):
    """A client that resets its call before it has sent a message is counted as CANCELLED, not as an invalid request."""
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
async def test_a_message_above_the_limit_is_not_counted_as_an_invalid_request(serving, method):
    """A message above the limit, which gRPC itself rejects with RESOURCE_EXHAUSTED, reaches no handler."""
    async with serving(("grpc.max_receive_message_length", 1000)) as (channel, _, server):
        error = await rejection(call_to(channel, method)(bytes(2000)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await ended_calls(server, 1) == {(f"test.Echo/{method}", "CANCELLED", 1)}


@pytest.mark.parametrize(
    ("value", "is_wanted"),
    [
        ("gzip", True),
        ("identity, GZIP", True),
        ("gzip;q=0.5", True),
        ("deflate, gzip ; q=1", True),
        ("gzip;q=0", False),
        ("identity, gzip; q=0.0", False),
        ("x-gzip", False),
        ("identity", False),
        ("", False),
    ],
)
def test_responses_are_compressed_only_for_clients_that_accept_gzip(value, is_wanted):
    """The metadata `accept-encoding` has the syntax of HTTP: a list of names; the weight 0 means not accepted."""
    assert wants_gzip((("user-agent", "gzip"), ("accept-encoding", value))) is is_wanted


async def wait_for_answer(channel) -> None:
    """Repeat a call until it succeeds; only the test's time limit ends the wait earlier."""
    answer = None
    while not answer:
        with suppress(grpc.aio.AioRpcError):
            answer = await call_to(channel, "Unary")(b"x", wait_for_ready=True)


async def test_a_port_in_use_is_an_error(serving):
    """A server fails with an error if another server uses its port, and does not silently share the port."""
    async with serving() as (_, _, server):
        address = server.listen("127.0.0.1:0")
        other = create_server(serving.args[0], [("grpc.so_reuseport", 0)])
        with pytest.raises(AddressUnusable, match=f"cannot listen on {address}: the port is in use"):
            other.listen(address)
