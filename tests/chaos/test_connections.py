"""Test cut, slow and silent connections between our clients and a service, through a proxy that the test controls."""

import asyncio
import gc
import random
import socket
import struct
import subprocess
import time
from contextlib import ExitStack, asynccontextmanager, suppress

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from conftest import BIN
from process_resources import held, open_files
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import AsyncClient, DeadlineExceeded

pytestmark = [pytest.mark.chaos, pytest.mark.both_transports, pytest.mark.timeout(120)]

RESET = struct.pack("ii", 1, 0)  # with an SO_LINGER time of 0, close() sends RST instead of FIN

MAX_SERVICE_MIB = 350  # highest memory that the tests accept for a service on the CPU


class Proxy:
    """Forward bytes between a client and the service; a test can cut, delay or discard the bytes."""

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = host, int(port)
        self._chance = random.Random(3)
        self._open: dict[asyncio.Task, tuple[socket.socket, socket.socket]] = {}
        self.delay_s = 0.0  # delay before the proxy forwards each piece
        self.piece_bytes = 65_536
        # while this event is cleared, the proxy discards bytes and closes no connection
        self.may_pass = asyncio.Event()
        self.may_pass.set()
        self.cuts = {"RST": 0, "FIN": 0}
        self.connections = 0

    async def serve(self, listener: socket.socket) -> None:
        """Forward all connections until the task is cancelled."""
        with ExitStack() as accepted:
            async with asyncio.TaskGroup() as connections:
                while True:
                    here, _ = await asyncio.get_running_loop().sock_accept(listener)
                    accepted.enter_context(here)
                    here.setblocking(False)
                    self.connections += 1
                    connections.create_task(self._forward(here))

    async def _forward(self, here: socket.socket) -> None:
        with here, socket.socket() as there, suppress(OSError):
            there.setblocking(False)
            await asyncio.get_running_loop().sock_connect(there, self._target)
            directions = [asyncio.create_task(self._pass(*each)) for each in ((here, there), (there, here))]
            self._open[asyncio.current_task()] = (here, there)
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._open.pop(asyncio.current_task(), None)
                for each in directions:
                    each.cancel()
                await asyncio.gather(*directions, return_exceptions=True)

    async def _pass(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(source, self.piece_bytes):
            if not self.may_pass.is_set():
                continue
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await loop.sock_sendall(target, piece)

    def cut(self) -> None:
        """Cut all connections at once, even in the middle of a message."""
        for task, both in self._open.items():
            for each in both:
                how = self._chance.choice(("RST", "FIN"))
                self.cuts[how] += 1
                if how == "RST":
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            task.cancel()
        self._open.clear()


@asynccontextmanager
async def proxied(target: str):
    """Run a proxy; yield the proxy and its address."""
    proxy = Proxy(target)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        serving = asyncio.create_task(proxy.serve(listener))
        try:
            yield proxy, "{}:{}".format(*listener.getsockname())
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving


@pytest.fixture
def service(start_service, tiny_model):
    """Start a new service for each test, because each test compares the open files before and after its calls."""
    return start_service(tiny_model)


async def wait_until_closed(service, before) -> float:
    """Wait until the service has closed all files that it has opened since `before`; return the time in seconds.

    gRPC closes the socket of a connection that was cut before its first HTTP/2 frame when the time limit for this
    frame has passed (20 s).
    """
    began_at = time.monotonic()
    while more := open_files(service.process.pid) - before:
        gc.collect()  # objects of the test's own calls keep their connections open until garbage collection
        assert time.monotonic() - began_at < 30, more
        await asyncio.sleep(0.05)
    return time.monotonic() - began_at


def expected(model, bitmaps):
    """Return the scores that ONNX Runtime, called directly, computes for the bitmaps."""
    return ort.InferenceSession(model).run(["scores"], {"bitmaps": bitmaps})[0]


async def cutting(proxy: Proxy, work: asyncio.Task) -> None:
    """Cut all connections at random moments until the task `work` is done."""
    chance = random.Random(5)
    while not work.done():
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        proxy.cut()


async def test_cut_connections_lose_no_answer(service, tiny_model, noise, capsys):
    """If RST or FIN cuts connections at random moments, every call still receives its scores before its deadline."""
    bitmaps = noise(3000)
    right = expected(tiny_model, bitmaps)
    before = open_files(service.process.pid)
    async with proxied(service.address) as (proxy, address):

        async def caller(client: AsyncClient, number: int) -> int:
            chance = random.Random(number)
            until, answered = time.monotonic() + 8, 0
            while time.monotonic() < until:
                start = chance.randrange(2900)
                rows = slice(start, start + chance.choice((1, 100)))
                answer = await client.classify(bitmaps[rows], top_k=0)
                assert np.allclose(answer.scores, right[rows], atol=1e-5)
                answered += 1
            return answered

        async with AsyncClient(address, timeout_s=20) as client:
            work = asyncio.ensure_future(asyncio.gather(*(caller(client, number) for number in range(8))))
            await cutting(proxy, work)
            answered = sum(await work)
    took_s = await wait_until_closed(service, before)
    with capsys.disabled():
        print(
            f"\ncut {proxy.cuts} of {proxy.connections} connections: {answered:,} calls, all answered; "
            f"files closed within {took_s:.1f} s"
        )
    assert proxy.connections > 5
    assert answered > 100


async def test_cut_connections_lose_no_row_of_a_file(service, noise, tmp_path, capsys):
    """If its connections are cut at random moments, `sketchbatch score` still produces byte-identical output."""
    np.save(tmp_path / "a.npy", noise(30_000))

    async def score(address: str, name: str) -> bytes:
        words = ["score", tmp_path / "a.npy", "--server", address, "--output", tmp_path / name, "--part-rows", "2048"]
        process = await asyncio.create_subprocess_exec(BIN / "sketchbatch", *words, stderr=subprocess.PIPE)
        _, errors = await process.communicate()
        assert process.returncode == 0, errors
        return (tmp_path / name).read_bytes()

    undisturbed = await score(service.address, "undisturbed.csv")
    async with proxied(service.address) as (proxy, address):
        # the delay makes the job so slow that the proxy cuts its connections several times
        proxy.delay_s, proxy.piece_bytes = 0.001, 16_384
        work = asyncio.ensure_future(score(address, "cut.csv"))
        await cutting(proxy, work)
    assert await work == undisturbed
    with capsys.disabled():
        print(f"\ncut {proxy.cuts} of {proxy.connections} connections during a job of 30,000 rows: identical output")
    assert proxy.connections > 2


async def test_a_call_over_a_silent_connection_ends_at_its_deadline(service, noise, capsys):
    """If a connection stays open but delivers no bytes, the client and the service end a call at its deadline."""
    before = open_files(service.process.pid)
    async with proxied(service.address) as (proxy, address), AsyncClient(address, timeout_s=2) as client:
        await client.classify(noise(1))
        proxy.may_pass.clear()
        began_at = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.classify(noise(100))
        took_s = time.monotonic() - began_at
        proxy.may_pass.set()
        proxy.cut()
        assert len(await client.classify(noise(1))) == 1
    closed_s = await wait_until_closed(service, before)
    with capsys.disabled():
        print(f"\nsilent: DeadlineExceeded after {took_s:.1f} of 2 s; files closed within {closed_s:.1f} s")
    assert took_s < 3


async def test_a_client_that_is_idle_for_long_keeps_its_connection(tiny_services, noise, capsys):
    """The service, with each transport, accepts a ping every 20 s from an idle client and keeps the connection.

    gRPC servers can count such pings as abuse, and would then close the connection at the third ping.
    """
    idle_s = 70.0

    async def new_connections(service) -> int:
        async with proxied(service.address) as (proxy, address), AsyncClient(address) as client:
            await client.classify(noise(1))
            connections = proxy.connections
            await asyncio.sleep(idle_s)
            await client.classify(noise(1))
        return proxy.connections - connections

    new = await asyncio.gather(*(new_connections(tiny_services(transport)) for transport in ("core", "aio")))
    with capsys.disabled():
        print(f"\nidle for {idle_s:.0f} s: {new} new connections")
    assert new == [0, 0]


async def test_a_client_that_never_reads_its_stream_slows_no_other_client(service, noise, capsys):
    """A client that sends messages on a stream and reads no response does not slow the calls of another client.

    Flow control limits the number of messages that the service accepts from this stream, and thereby its memory.
    """
    message = pb.ClassifyStreamRequest(bitmaps=noise(1000).tobytes())
    sent = [0] * 4
    channels = [grpc.aio.insecure_channel(service.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in sent]

    streams = [classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream() for channel in channels]

    async def send(number: int) -> None:
        # both errors are expected, because the test ends the stream during a write
        with suppress(asyncio.CancelledError, asyncio.InvalidStateError):
            while True:
                await streams[number].write(message)
                sent[number] += 1

    async def latencies(client: AsyncClient) -> list[float]:
        took = []
        for _ in range(300):
            began_at = time.monotonic()
            await client.classify(noise(1))
            took.append(time.monotonic() - began_at)
        return sorted(took)

    before = open_files(service.process.pid)
    async with AsyncClient(service.address) as client:
        alone = await latencies(client)
        senders = [asyncio.create_task(send(number)) for number in range(len(sent))]
        sent_before = -1
        while sent_before != sum(sent) or not sent_before:  # wait until flow control has stopped all senders
            sent_before = sum(sent)
            await asyncio.sleep(1)
        stopped_mib = held(service.process.pid)["resident_mib"]
        concurrent = await latencies(client)
        largest = held(service.process.pid)["resident_mib"]
        for stream in streams:
            stream.cancel()
        await asyncio.wait(senders, timeout=5)
        await asyncio.gather(*(channel.close() for channel in channels))
        senders.clear()
        streams.clear()
        del stream  # grpc.aio keeps a connection open as long as one of its calls is referenced
    closed_s = await wait_until_closed(service, before)
    with capsys.disabled():
        print(
            f"\n4 unread streams: {sent} messages accepted, {largest} MiB; another client's p50 "
            f"{alone[150] * 1e3:.1f} -> {concurrent[150] * 1e3:.1f} ms, p99 {alone[297] * 1e3:.1f} -> "
            f"{concurrent[297] * 1e3:.1f} ms; files closed within {closed_s:.1f} s"
        )
    assert largest < MAX_SERVICE_MIB
    assert largest <= stopped_mib * 1.05
    assert concurrent[150] < max(5 * alone[150], 0.02)
