"""Test both transports: compressed messages, addresses, and hostile connections that stop grpcio's own server."""

import asyncio
import errno
import os
import re
import resource
import socket
import threading
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from sketchbatch_service.errors import AddressUnusable
from sketchbatch_service.transport import listening
from sketchbatch_service.transport.interface import wants_gzip
from sketchbatch_service.transport.selection import create_server
from structlog.testing import capture_logs
from transport_server import (
    STREAM,
    call_to,
    ended_calls,
    frame,
    half_message,
    raw_call,
    rejection,
    run_server,
)

ZEROS = bytes(1 << 20)


@asynccontextmanager
async def counting_bytes(address: str):
    """Run a forwarder to the server at `address`; yield the forwarder's address and a list.

    The list contains the sizes of the pieces of data that the server has sent.
    """
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
    """`accept-encoding` has the syntax of HTTP: names with optional weights; weight 0 means that it is not accepted."""
    assert wants_gzip((("user-agent", "gzip"), ("accept-encoding", value))) is is_wanted


async def test_a_compressed_message_may_not_grow_beyond_the_limit(serving):
    """A compressed message is rejected if its decompressed size is above the limit."""
    async with serving(("grpc.max_receive_message_length", len(ZEROS))) as (channel, _, _):
        unary = call_to(channel, "Unary")
        error = await rejection(unary(10 * ZEROS, compression=grpc.Compression.Gzip))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await unary(b"next") == b"next"


async def test_a_unix_socket_is_served_and_removed(serving, tmp_path):
    """A server can listen on a socket file, which it removes when it stops.

    The server replaces the file of a process that no longer exists. It refuses a file on which another process listens.
    """
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
    """An address whose file is no socket, or whose folder is missing, is an error; the file does not change."""
    file = tmp_path / "notes.txt"
    file.write_text("keep")
    for address, reason in ((f"unix:{file}", "is not a socket"), (f"unix:{tmp_path}/a/b", "the folder must exist")):
        with pytest.raises(AddressUnusable, match=reason):
            create_server(serving.args[0]).listen(address)
    assert file.read_text() == "keep"


@pytest.mark.parametrize(("address", "hosts"), [("[::1]:0", ["[::1]"]), ("[::]:0", ["[::1]", "127.0.0.1"])])
async def test_ipv6_addresses_are_served(serving, address, hosts):
    """A server can listen on an IPv6 address; on `[::]`, it accepts IPv4 connections, too."""
    async with serving(address=address) as (_, echo, _):
        host, _, port = echo.address.rpartition(":")
        assert f"{host}:0" == address
        for host in hosts:
            async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
                assert await call_to(channel, "Unary")(b"x") == b"x"


async def test_a_port_in_use_is_an_error(serving):
    """A server fails with an error if another server uses its port, and does not silently share the port."""
    async with serving() as (_, _, server):
        address = server.listen("127.0.0.1:0")
        other = create_server(serving.args[0], [("grpc.so_reuseport", 0)])
        with pytest.raises(AddressUnusable, match=f"cannot listen on {address}: the port is in use"):
            other.listen(address)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.1:1", "this machine has no such address"),
        ("[2001:db8::1]:1", "this machine has no such address"),
        ("a..b:1", "a..b cannot be resolved: not a name of a host"),
    ],
)
async def test_an_address_that_cannot_be_bound_is_refused_with_the_reason(serving, address, reason):
    """A misspelt address, and one of another machine, are not reported as a port in use."""
    with pytest.raises(AddressUnusable, match=re.escape(f"cannot listen on {address}: {reason}")):
        create_server(serving.args[0]).listen(address)


async def test_a_client_that_speaks_http_1_is_disconnected(serving):
    """A browser, or the health check of a load balancer over HTTP/1.1, is not left waiting for a response."""
    async with serving() as (_, echo, _):
        reading, writing = await asyncio.open_connection(*echo.address.rsplit(":", 1))
        writing.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            await reading.read()  # until the server closes the connection
        writing.close()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::]:0"])
async def test_a_server_that_stops_listening_still_answers_open_connections(serving, address):
    """After `stop_listening`, calls over open connections succeed, and new connections are refused.

    The ports of other servers in the process stay open.
    """
    async with serving() as (other, _, _), serving(address=address) as (channel, echo, server):
        assert await call_to(channel, "Unary")(b"x") == b"x"
        server.stop_listening()
        assert await call_to(channel, "Unary")(b"x") == b"x"
        target = echo.address.replace("[::]", "127.0.0.1")
        async with grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as late:
            error = await rejection(call_to(late, "Unary")(b"x"))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert await call_to(other, "Unary")(b"x") == b"x"
    async with serving(address=echo.address) as (channel, _, _):  # the next process can use the address
        assert await call_to(channel, "Unary")(b"x") == b"x"


async def test_a_socket_file_stays_open_until_the_server_stops(serving, tmp_path):
    """After `stop_listening`, a second server cannot take the socket file, which the first one would then remove."""
    async with serving(address=f"unix:{tmp_path / 'service.sock'}") as (channel, echo, server):
        server.stop_listening()
        with pytest.raises(AddressUnusable, match="another process listens on it"):
            create_server(serving.args[0]).listen(echo.address)
        assert await call_to(channel, "Unary")(b"x") == b"x"


async def test_a_listener_that_cannot_be_found_stays_open(serving, monkeypatch):
    """Without a free file descriptor, `stop_listening` logs a warning, and the server continues to listen."""

    def fail(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async with serving() as (channel, _, server):
        monkeypatch.setattr(os, "dup", fail)
        with capture_logs() as events:
            server.stop_listening()
        assert [event["log_level"] for event in events] == ["warning"]
        assert await call_to(channel, "Unary")(b"x") == b"x"


async def test_a_failed_server_that_has_stopped_listening_opens_no_port_again(root):
    """If the server of the transport `aio` fails after `stop_listening`, the new server opens no port."""
    async with run_server("aio") as (channel, echo, server):
        assert await call_to(channel, "Unary")(b"x") == b"x"
        host, _, port = echo.address.rpartition(":")
        reader, hostile = await asyncio.open_connection(host, int(port))
        # The head of the server's first frame shows that the server has accepted the connection.
        await reader.readexactly(9)
        with capture_logs() as events:
            server.stop_listening()
            hostile.write((root / "tests/fuzz/corpus/grpc/path-is-no-utf8").read_bytes())
            while not events:
                await asyncio.sleep(0.01)
        hostile.close()
        await asyncio.wait_for(wait_for_refusal(channel), 10)


async def test_a_call_outlives_the_maximum_age_of_its_connection(serving):
    """A connection that reaches its maximum age accepts no more calls, and its open calls are answered."""
    async with serving(("grpc.max_connection_age_ms", 50)) as (channel, echo, _):
        old = asyncio.ensure_future(call_to(channel, "Direct")(b"old"))
        await echo.wait_for_direct()
        await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)  # until GOAWAY arrives
        for _ in range(3):  # these calls use new connections, each of which also reaches its maximum age
            assert await call_to(channel, "Unary")(b"new") == b"new"
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        echo.direct[0][1].respond(b"answered")
        assert await old == b"answered"


async def test_a_call_whose_path_is_not_utf8_does_not_stop_the_server(serving, root):
    """After a call whose path is not UTF-8, the server answers at the same address.

    With `aio`, grpcio's server fails. Its open calls end with CANCELLED or UNAVAILABLE, and a new server listens on the
    same port.
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


async def test_an_open_stream_does_not_keep_a_failed_server_from_answering_again(serving, root):
    """After a call whose path is not UTF-8, the server responds again, although a stream of another client is open.

    The other client ignores GOAWAY, so only the server can end its stream.
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


@asynccontextmanager
async def silent_client(address: str, content: bytes):
    """Connect, send `content`, and then nothing: the client answers neither pings nor GOAWAY."""
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(content)
    await writer.drain()
    try:
        yield
    finally:
        writer.close()
        with suppress(ConnectionError):  # the server may have closed the connection before
            await writer.wait_closed()


async def until_open(server, connections: int) -> None:
    """Wait until the server reports a number of open connections."""
    async with asyncio.timeout(10):
        while server.connections() != connections:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_open_connections_are_counted(serving, tmp_path, kind):
    """The server counts the open connections of its address, without the listener and without other sockets."""
    address = f"unix:{tmp_path}/service.sock" if kind == "unix" else "127.0.0.1:0"
    async with serving(address=address) as (_, echo, server):
        opened = []
        for number in range(3):
            await until_open(server, number)
            if kind == "unix":
                opened.append(await asyncio.open_unix_connection(tmp_path / "service.sock"))
            else:
                opened.append(await asyncio.open_connection(*echo.address.rsplit(":", 1)))
        await until_open(server, 3)
        for _, writer in opened:
            writer.close()
            await writer.wait_closed()
        await until_open(server, 0)


def test_open_files_are_listed_without_a_free_file_descriptor(monkeypatch):
    """If no file descriptor is free to list the open ones, all up to the limit count as open."""

    def fail(path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    assert list(listening.open_descriptors()) == list(range(64))


@pytest.mark.parametrize("method", ["Direct", "Unary"])
async def test_a_request_that_does_not_arrive_in_time_ends_its_call(serving, method):
    """A call whose request arrives only in part ends with DEADLINE_EXCEEDED, because gRPC holds the part in memory.

    The time limit does not apply to a call whose request has arrived.
    """
    async with serving(max_receive_s=0) as (channel, echo, server):
        waiting = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
        await echo.wait_for_direct()
        async with silent_client(echo.address, raw_call(f"/test.Echo/{method}") + half_message()):
            assert await ended_calls(server, 1) == {(f"test.Echo/{method}", "DEADLINE_EXCEEDED", 1)}
        assert len(echo.direct) == 1
        echo.direct[0][1].respond(b"in time")
        assert await waiting == b"in time"


@pytest.mark.parametrize("method", ["Direct", "Unary"])
async def test_a_stop_ends_calls_whose_request_has_not_arrived(serving, method):
    """A stop rejects a call whose request arrives only in part with UNAVAILABLE, before the grace period has passed."""
    has_arrived = threading.Event()
    async with serving(stops=False, authenticate=lambda path, metadata: has_arrived.set()) as (_, echo, server):
        async with silent_client(echo.address, raw_call(f"/test.Echo/{method}") + half_message()):
            assert await asyncio.to_thread(has_arrived.wait, 10)
            await asyncio.wait_for(server.stop(1000), 10)
        assert {(code, number) for _, code, number in await ended_calls(server, 1)} == {("UNAVAILABLE", 1)}


@pytest.mark.parametrize("is_listening", [True, False])
async def test_a_stop_does_not_wait_for_clients_that_ignore_it(serving, is_listening):
    """A stop closes connections whose clients do not react to GOAWAY, a second after the last call has ended.

    gRPC itself would wait for such a client for 20 s. The same is true if the listener was closed before the stop.
    """
    async with serving(stops=False) as (channel, echo, server):
        waiting = asyncio.ensure_future(call_to(channel, "Direct")(b"x"))
        await echo.wait_for_direct()
        async with silent_client(echo.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")):
            await until_open(server, 2)  # of the channel and of the silent client
            if not is_listening:
                server.stop_listening()
            stopping = asyncio.ensure_future(server.stop(1000))
            await rejection(call_to(channel, "Unary")(b""))  # the stop has begun
            assert not stopping.done()
            echo.direct[0][1].respond(b"in time")
            assert await waiting == b"in time"
            await asyncio.wait_for(stopping, 10)


@pytest.mark.parametrize("method", ["Direct", "Unary", "Stream"])
async def test_a_call_that_is_cancelled_at_once_is_counted(serving, method):
    """A call whose cancellation arrives together with it is counted as CANCELLED, even if its handler never runs."""
    cancel = frame(3, 0, 1, (8).to_bytes(4, "big"))
    async with serving() as (channel, echo, server):
        for _ in range(10):
            async with silent_client(echo.address, raw_call(f"/test.Echo/{method}") + cancel):
                pass
        await call_to(channel, "Unary")(b"")
        ends = await ended_calls(server, 11)
        assert (f"test.Echo/{method}", "CANCELLED", 10) in ends


async def wait_for_refusal(channel) -> None:
    """Repeat a call until the address refuses the connection."""
    details = ""
    while "Connection refused" not in details:
        details = (await rejection(call_to(channel, "Unary")(b"x"))).details()


async def wait_for_failure_or_answers(channel) -> None:
    """Send calls for a second, because the server may fail in this time; then repeat a call until it succeeds."""
    for _ in range(10):
        with suppress(grpc.aio.AioRpcError):
            await call_to(channel, "Unary")(b"x", timeout=1)
        await asyncio.sleep(0.1)
    await wait_for_answer(channel)


async def wait_for_answer(channel) -> None:
    """Repeat a call until it succeeds; the wait has no time limit except that of the test."""
    answer = None
    while not answer:
        with suppress(grpc.aio.AioRpcError):
            answer = await call_to(channel, "Unary")(b"x", wait_for_ready=True)
