"""Keep requests in flight with threads, futures, asyncio tasks or h2load, on plain stubs or on our clients.

README.md states the cost of threads, futures and tasks. This module runs in the load generator's process only.
"""

import asyncio
import queue
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, cycle, islice

import grpc
import h2load
import numpy as np
from peers import Bitmaps, Caller, Peer, Scores, Stop
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1.classifier_pb2_grpc import ClassifierServiceStub
from sketchbatch_client import AsyncClient, Client

Classify = Callable[[Bitmaps], object]

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # loopback connections must not go through a proxy
    ("grpc.use_local_subchannel_pool", 1),  # without a local pool, all channels share one connection
]


def in_threads(calls: Sequence[Classify], requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
    """Run `in_flight` threads, each of which sends its next request after an answer; return each request's seconds."""

    def repeat(number: int) -> list[float]:
        took_s = []
        call = calls[number % len(calls)]
        for bitmaps in _from(requests, number):
            sent_at = time.perf_counter()
            call(bitmaps)
            took_s.append(time.perf_counter() - sent_at)
            if stop.is_set():
                break
        return took_s

    with ThreadPoolExecutor(in_flight) as pool:
        return list(chain.from_iterable(pool.map(repeat, range(in_flight))))


def at_rate(call: Classify, requests: Sequence[Bitmaps], per_s: float, in_flight: int, stop: Stop) -> list[float]:
    """Send `per_s` requests a second from `in_flight` threads; return the seconds from each planned time to its answer.

    A request waits for a free thread if all threads wait for answers, and this wait is part of its duration.
    """
    began_at = time.perf_counter()

    def repeat(number: int) -> list[float]:
        took_s = []
        for turn, bitmaps in enumerate(_from(requests, number)):
            planned_at = began_at + (turn * in_flight + number) / per_s
            time.sleep(max(0.0, planned_at - time.perf_counter()))
            call(bitmaps)
            took_s.append(time.perf_counter() - planned_at)
            if stop.is_set():
                break
        return took_s

    with ThreadPoolExecutor(in_flight) as pool:
        return list(chain.from_iterable(pool.map(repeat, range(in_flight))))


async def in_tasks(
    calls: Sequence[Callable[[Bitmaps], Awaitable[object]]], requests: Sequence[Bitmaps], in_flight: int, stop: Stop
) -> list[float]:
    """Run `in_flight` asyncio tasks, each sending its next request after an answer; return each request's seconds."""

    async def repeat(number: int) -> list[float]:
        took_s = []
        call = calls[number % len(calls)]
        for bitmaps in _from(requests, number):
            sent_at = time.perf_counter()
            await call(bitmaps)
            took_s.append(time.perf_counter() - sent_at)
            if stop.is_set():
                break
        return took_s

    return list(chain.from_iterable(await asyncio.gather(*map(repeat, range(in_flight)))))


class StubThreads:
    """Plain generated stubs, with one thread per request in flight."""

    def __init__(self, address: str, peer: Peer) -> None:
        channels = [grpc.insecure_channel(address, options=_OPTIONS) for _ in range(peer.channels)]
        self._stubs = [ClassifierServiceStub(channel) for channel in channels]

    def classify(self, bitmaps: Bitmaps) -> Scores:
        response = self._stubs[0].Classify(_request(bitmaps))
        return np.frombuffer(response.scores, "<f4").reshape(len(bitmaps), -1)

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        calls = [partial(_classify, stub) for stub in self._stubs]
        return in_threads(calls, requests, in_flight, stop)


class StubFutures(StubThreads):
    """Plain generated stubs, with futures that one thread collects."""

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        done: queue.SimpleQueue[tuple[grpc.Future, float, int]] = queue.SimpleQueue()
        upcoming = cycle(requests)

        def send(number: int) -> None:
            sent_at = time.perf_counter()
            future = self._stubs[number % len(self._stubs)].Classify.future(_request(next(upcoming)))
            future.add_done_callback(lambda future: done.put((future, sent_at, number)))

        for number in range(in_flight):
            send(number)
        took_s = []
        open_requests = in_flight
        while open_requests:
            future, sent_at, number = done.get()
            future.result()
            took_s.append(time.perf_counter() - sent_at)
            if stop.is_set():
                open_requests -= 1
            else:
                send(number)
        return took_s


class StubTasks(StubThreads):
    """Plain generated stubs on grpc.aio, with one asyncio task per request in flight."""

    def __init__(self, address: str, peer: Peer) -> None:
        super().__init__(address, peer)
        self._address, self._channels = address, peer.channels
        self._runner = asyncio.Runner()
        self._aio_stubs = self._runner.run(self._connect())

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        return self._runner.run(self._keep_in_flight(requests, in_flight, stop))

    async def _connect(self) -> list[ClassifierServiceStub]:
        channels = [grpc.aio.insecure_channel(self._address, options=_OPTIONS) for _ in range(self._channels)]
        return [ClassifierServiceStub(channel) for channel in channels]

    async def _keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        calls = [partial(_classify_async, stub) for stub in self._aio_stubs]
        return await in_tasks(calls, requests, in_flight, stop)


class H2Load(StubThreads):
    """The program `h2load` on one connection; a plain stub checks the scores."""

    def __init__(self, address: str, peer: Peer) -> None:
        super().__init__(address, peer)
        self._address = address

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        scores = self.classify(requests[0])
        return h2load.keep_in_flight(
            self._address, _request(requests[0]).SerializeToString(), scores.nbytes, in_flight, stop
        )


class InferThreads:
    """ModelInfer of the Open Inference Protocol by plain calls, with one thread per request in flight."""

    def __init__(self, address: str, _: Peer) -> None:
        self._infer = grpc.insecure_channel(address, options=_OPTIONS).unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )

    def classify(self, bitmaps: Bitmaps) -> Scores:
        scores = self._send(bitmaps).raw_output_contents[0]
        return np.frombuffer(scores, "<f4").reshape(len(bitmaps), -1)

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        return in_threads([self._send], requests, in_flight, stop)

    def _send(self, bitmaps: Bitmaps) -> oip.ModelInferResponse:
        request = oip.ModelInferRequest(raw_input_contents=[bitmaps.tobytes()])
        request.inputs.add(name="bitmaps", datatype="UINT8", shape=bitmaps.shape)
        response: oip.ModelInferResponse = self._infer(request)
        return response


class ClientThreads:
    """One `Client`, with one thread per request in flight."""

    def __init__(self, address: str, _: Peer) -> None:
        self._client = Client(address)

    def classify(self, bitmaps: Bitmaps) -> Scores:
        scores = self._client.classify(bitmaps).scores
        assert scores is not None
        return scores

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        return in_threads([self._client.classify], requests, in_flight, stop)


class ClientTasks(ClientThreads):
    """One `AsyncClient`, with one task per request in flight."""

    def __init__(self, address: str, peer: Peer) -> None:
        super().__init__(address, peer)
        self._runner = asyncio.Runner()
        self._tasks_client = self._runner.run(_async_client(address))

    def keep_in_flight(self, requests: Sequence[Bitmaps], in_flight: int, stop: Stop) -> list[float]:
        return self._runner.run(in_tasks([self._tasks_client.classify], requests, in_flight, stop))


STYLES: dict[str, Callable[[str, Peer], Caller]] = {
    "threads": StubThreads,
    "futures": StubFutures,
    "aio": StubTasks,
    "h2load": H2Load,
}


def stubs(address: str, peer: Peer) -> Caller:
    """Return a caller with plain generated stubs, in the peer's style."""
    return STYLES[peer.style](address, peer)


def _request(bitmaps: Bitmaps) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(bitmaps=bitmaps.tobytes())


def _classify(stub: ClassifierServiceStub, bitmaps: Bitmaps) -> None:
    stub.Classify(_request(bitmaps))


async def _classify_async(stub: ClassifierServiceStub, bitmaps: Bitmaps) -> None:
    await stub.Classify(_request(bitmaps))


async def _async_client(address: str) -> AsyncClient:
    """Create the client inside the running event loop, because an `AsyncClient` belongs to one loop."""
    return AsyncClient(address)


def _from(requests: Sequence[Bitmaps], number: int) -> "islice[Bitmaps]":
    """Cycle through the requests without end; caller `number` starts at request `number`."""
    return islice(cycle(requests), number % len(requests), None)
