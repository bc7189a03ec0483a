"""Stop the process of the service for half a minute, or cancel large requests; later requests must be answered."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import grpc
import pytest
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

CALLERS = 8
ROWS = 64
DEADLINE_S = 0.5
BEFORE_S = 5.0
FREEZE_S = 30.0
RECOVERY_S = 2.0  # time after the freeze in which requests may fail
AFTER_S = 5.0
CLIENT_TIMEOUT_S = 2.0


class Callers:
    """Send requests from several tasks; count the statuses of the requests by the phase in which they end."""

    def __init__(self, stub, request, *, period_s: float, pause_s: float) -> None:
        self.phase = "before"
        self.ended: dict[str, Counter] = {"before": Counter(), "recovery": Counter(), "after": Counter()}
        self._stub = stub
        self._request = request
        self._period_s = period_s  # time between two starts of requests of one caller; 0 = no pause after a response
        self._pause_s = pause_s  # time from a rejection to the next request

    async def run(self) -> None:
        """Send requests until the task is cancelled."""
        await asyncio.gather(*(self._call() for _ in range(CALLERS)))

    async def _call(self) -> None:
        while True:
            next_at = time.monotonic() + self._period_s
            try:
                await self._stub.Classify(self._request, timeout=DEADLINE_S)
                self.ended[self.phase]["OK"] += 1
            except grpc.aio.AioRpcError as exc:
                self.ended[self.phase][exc.code().name] += 1
                await asyncio.sleep(self._pause_s)
            await asyncio.sleep(next_at - time.monotonic())


@pytest.mark.parametrize("pause_s", [0.0, 0.02], ids=["no pause", "pause of 20 ms"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("load", ["half", "full"])
async def test_after_a_freeze_requests_are_answered_as_before(
    start_service, root, noise, capsys, load, threads, pause_s
):
    """Two seconds after a freeze of 30 s, few requests are rejected; at half load, the goodput is as before the freeze.

    At full load on a busy machine, some requests are rejected or expire without any freeze.
    """
    service = start_service(root / "models" / "bear-cat-dog" / "2" / "model.onnx", "--threads", str(threads))
    request = pb.ClassifyRequest(bitmaps=noise(ROWS).tobytes())
    async with grpc.aio.insecure_channel(service.address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        period_s = 0.0
        if load == "half":
            period_s = 2 * CALLERS / await _capacity_per_s(stub, request)
        callers = Callers(stub, request, period_s=period_s, pause_s=pause_s)
        calling = asyncio.create_task(callers.run())
        await asyncio.sleep(BEFORE_S)
        os.kill(service.process.pid, signal.SIGSTOP)
        callers.phase = "recovery"
        await asyncio.sleep(FREEZE_S)
        os.kill(service.process.pid, signal.SIGCONT)
        await asyncio.sleep(RECOVERY_S)
        callers.phase = "after"
        await asyncio.sleep(AFTER_S)
        calling.cancel()
    before, after = (
        callers.ended[phase]["OK"] / took_s for phase, took_s in (("before", BEFORE_S), ("after", AFTER_S))
    )
    with capsys.disabled():
        print(f"\n{load} load, {threads} threads, pause {pause_s} s: {callers.ended}; goodput {after / before:.3f}")
    if load == "half":
        assert set(callers.ended["before"]) == set(callers.ended["after"]) == {"OK"}
        assert after >= 0.95 * before
    else:
        assert _rejected(callers.ended["after"]) <= _rejected(callers.ended["before"]) + 0.1


def _rejected(ended: Counter) -> float:
    """Return the share of the requests that the service rejected."""
    return ended["RESOURCE_EXHAUSTED"] / ended.total()


async def _capacity_per_s(stub, request) -> float:
    """Return the responses per second to callers that send one request after another."""
    callers = Callers(stub, request, period_s=0.0, pause_s=0.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(callers.run(), 3)
    return callers.ended["before"]["OK"] / 3


async def test_after_cancelled_requests_and_idle_time_every_request_is_accepted(start_service, root, noise):
    """After three large requests are cancelled, an idle service accepts the first burst of requests with deadlines."""
    model = root / "models" / "bear-cat-dog" / "2" / "model.onnx"
    services = {idle_s: start_service(model) for idle_s in (1, 20, 60)}
    async with asyncio.TaskGroup() as bursts:
        for idle_s, service in services.items():
            bursts.create_task(_burst_after_idle_time(service.address, noise, idle_s))


async def _burst_after_idle_time(address: str, noise, idle_s: float) -> None:
    large, small = (pb.ClassifyRequest(bitmaps=noise(rows).tobytes()) for rows in (16_384, 500))
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        for cancel_after_s in (0.1, 0.2, 0.4):
            calls = [stub.Classify(large) for _ in range(3)]
            await asyncio.sleep(cancel_after_s)
            for call in calls:
                call.cancel()
        await asyncio.sleep(idle_s)
        for _ in range(3):
            answers = await asyncio.gather(*(stub.Classify(small, timeout=10) for _ in range(16)))
            assert [answer.rows for answer in answers] == [500] * 16


CLIENT = """
import sys, threading
import numpy as np
from sketchbatch_client import Client

drawings = np.zeros((512, 28, 28), np.uint8)
stop = threading.Event()
failures = []


def repeat(classify):
    try:
        while not stop.is_set():
            classify()
    except Exception as exc:
        failures.append(repr(exc))


with Client(sys.argv[1], timeout_s=float(sys.argv[2]), rows_per_request=64) as client:
    kinds = [lambda: client.classify(drawings[:1]), lambda: list(client.score([drawings]))]
    threads = [threading.Thread(target=repeat, args=(kind,)) for kind in kinds for _ in range(3)]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
sys.exit("; ".join(failures) or 0)
"""


def test_a_client_that_was_stopped_for_longer_than_its_timeout_loses_no_request(tiny_service):
    """Small and bulk requests of a client succeed although the client is stopped until after their deadlines."""
    command = [sys.executable, "-c", CLIENT, tiny_service.address, str(CLIENT_TIMEOUT_S)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        client.stdout.readline()
        for _ in range(5):
            time.sleep(1)  # requests are in flight
            client.send_signal(signal.SIGSTOP)
            time.sleep(2 * CLIENT_TIMEOUT_S)
            client.send_signal(signal.SIGCONT)
        time.sleep(1)
        _, errors = client.communicate(b"\n", timeout=30)
    assert client.returncode == 0, errors.decode()
