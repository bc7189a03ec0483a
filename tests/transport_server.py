"""Run a transport of the service in the test's own process, with a handler that echoes bytes."""

import asyncio
import math
import threading
from contextlib import asynccontextmanager

import grpc
import pytest
from sketchbatch_service.transport.interface import Context, Server, UnaryCall
from sketchbatch_service.transport.selection import create_server

UNARY, STREAM = "/test.Echo/Unary", "/test.Echo/Stream"


class Echo(grpc.GenericRpcHandler):
    """Handle the calls of the tests: most methods return the request's bytes.

    The methods `Direct` and `Picky` return nothing: they add the call to the list `direct`, and the test responds.
    """

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
        """Wait until the list `direct` has `calls` calls more than after the last wait."""
        for _ in range(calls):
            assert await asyncio.to_thread(self.arrived.acquire, timeout=30)


def parse_nothing(message: bytes) -> bytes:
    raise ValueError("no such field")


@asynccontextmanager
async def run_server(
    transport: str,
    *options: tuple[str, int],
    stops: bool = True,
    address: str = "127.0.0.1:0",
    authenticate=None,
    max_receive_s: float = math.inf,
):
    """Run a server; yield a channel to the server, its handler and the server itself.

    The transport `core` needs a thread that polls; this function starts it. With `stops=False`, the test stops the
    server.
    """
    echo, server = Echo(), create_server(transport, options, authenticate, max_receive_s=max_receive_s)
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


def call_to(channel, method: str):
    return channel.unary_unary(f"/test.Echo/{method}")


async def ended_calls(server: Server, number: int) -> set[tuple[str, str, int]]:
    """Return the number of ended calls by method and status, once `number` calls have ended."""
    async with asyncio.timeout(10):
        while sum(count for _, _, count in counted(server)) < number:
            await asyncio.sleep(0.001)
    return counted(server)


def counted(server: Server) -> set[tuple[str, str, int]]:
    """Return the present number of ended calls by method and status."""
    return {(method, code, times.total().count) for method, code, times in server.call_ends.histograms()}


async def rejection(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def raw_call(path: str) -> bytes:
    """Return the HTTP/2 bytes that open a connection and start a call on stream 1; the call sends no message."""
    headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
    headers |= {"te": "trailers", "content-type": "application/grpc"}  # codespell:ignore te
    block = b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in headers.items()
    )
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, block)


def half_message() -> bytes:
    """Return the HTTP/2 bytes of a message on stream 1 of which 900 bytes are missing."""
    return frame(0, 0, 1, b"\0" + (1000).to_bytes(4, "big") + bytes(100))
