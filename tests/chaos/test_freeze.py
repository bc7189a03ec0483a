"""Test that the service recovers at once after its process was stopped for 30 seconds, and after cancelled requests."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field

import grpc
import pytest
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

ROWS = 64
CALLERS = 8
DEADLINE_S = 0.5
MEASURED_S = 5.0
FROZEN_S = 30.0
RECOVERY_S = 2.0  # time after the freeze in which requests may fail
CLIENT_TIMEOUT_S = 2.0
LARGE_ROWS, SMALL_ROWS = 16384, 256


@dataclass
class Callers:
    """Send requests of `ROWS` rows from `CALLERS` tasks until `is_done`; a rejected request is sent again.

    Each task sends its next request `interval_s` after its last one, or after its response if that comes later.
    `interval_s` may change while the tasks run.
    """

    stub: classifier_pb2_grpc.ClassifierServiceStub
    request: pb.ClassifyRequest
    pause_s: float  # between a rejection and the next attempt
    interval_s: float = 0.0
    is_done: bool = False
    codes: Counter[str] = field(default_factory=Counter)

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        for caller in range(CALLERS):
            tasks.create_task(self._send_all(caller * self.interval_s / CALLERS))

    async def _send_all(self, delay_s: float) -> None:
        next_at = time.perf_counter() + delay_s
        while not self.is_done:
            await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
            next_at = max(next_at + self.interval_s, time.perf_counter())
            while not (await self._is_answered() or self.is_done):
                await asyncio.sleep(self.pause_s)

    async def _is_answered(self) -> bool:
        try:
            await self.stub.Classify(self.request, timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as exc:
            self.codes[exc.code().name] += 1
            return exc.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
        self.codes["OK"] += 1
        return True

    async def count(self, seconds: float) -> Counter[str]:
        """Return how many requests end with each status within `seconds`."""
        before = self.codes.copy()
        await asyncio.sleep(seconds)
        return self.codes - before


async def _measure_capacity(stub, request) -> float:
    """Return the responses per second to `CALLERS` tasks that send without a pause."""
    callers = Callers(stub, request, pause_s=0.0)
    async with asyncio.TaskGroup() as tasks:
        await callers.run(tasks)
        await callers.count(1.0)
        answered = await callers.count(MEASURED_S)
        callers.is_done = True
    return answered["OK"] / MEASURED_S


async def _freeze(process_id: int) -> None:
    os.kill(process_id, signal.SIGSTOP)
    await asyncio.sleep(FROZEN_S)
    os.kill(process_id, signal.SIGCONT)


@pytest.mark.parametrize("pause_s", [0.02, 0.0])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("load", ["half load", "full load"])
async def test_the_service_recovers_within_two_seconds_after_a_freeze(
    start_service, root, noise, capsys, load, threads, pause_s
):
    """Two seconds after a freeze of 30 s, the goodput is at least 0.95 of before, and almost no request is rejected.

    The queue holds rows when the freeze begins, so the batcher measures a model call that lasts as long as the freeze.
    At full load the goodput depends on the speed of the machine only, so the test checks the rejections only.
    """
    model = root / "models" / "bear-cat-dog" / "1" / "model.onnx"
    service = start_service(model, "--threads", str(threads), "--max-batch-rows", str(ROWS))
    request = pb.ClassifyRequest(bitmaps=noise(ROWS).tobytes())
    async with grpc.aio.insecure_channel(service.address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        interval_s = 0.0
        if load == "half load":
            interval_s = CALLERS / (await _measure_capacity(stub, request) / 2)
        callers = Callers(stub, request, pause_s, interval_s)
        async with asyncio.TaskGroup() as tasks:
            await callers.run(tasks)
            await callers.count(1.0)
            before = await callers.count(MEASURED_S)
            callers.interval_s = 0.0
            await callers.count(1.0)
            await _freeze(service.process.pid)
            callers.interval_s = interval_s
            recovering = await callers.count(RECOVERY_S)
            after = await callers.count(MEASURED_S)
            callers.is_done = True
    service.stop()
    goodput = after["OK"] / before["OK"]
    with capsys.disabled():
        print(
            f"\n{load}, {threads} threads, pause {pause_s * 1e3:.0f} ms: {dict(before)} before, {dict(recovering)} in "
            f"the first {RECOVERY_S:.0f} s after the freeze, {dict(after)} later, goodput {goodput:.2f} of before"
        )
    assert load == "full load" or goodput >= 0.95
    assert after.total() - after["OK"] <= 0.01 * after.total()


async def test_an_idle_service_accepts_requests_after_cancelled_large_requests(start_service, root, noise, capsys):
    """After large requests were cancelled in the queue and the service was idle for 20 s, no request is rejected."""
    model = root / "models" / "bear-cat-dog" / "1" / "model.onnx"
    service = start_service(model, "--threads", "1", "--metrics-address", "127.0.0.1:0")
    large, small = (pb.ClassifyRequest(bitmaps=noise(rows).tobytes()) for rows in (LARGE_ROWS, SMALL_ROWS))
    options = [("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(service.address, options=options) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        await stub.Classify(small)
        calls = [stub.Classify(large) for _ in range(3)]
        while await asyncio.to_thread(_queued_rows, service.metrics_address) < LARGE_ROWS:
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(20)
        bursts = [await _burst(stub, small) for _ in range(4)]
    with capsys.disabled():
        print(f"\nbursts after cancelled requests: {[dict(codes) for codes in bursts]}")
    assert bursts == [Counter(OK=16)] * 4


def _queued_rows(metrics_address: str) -> float:
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("sketchbatch_queued_rows{"))


async def _burst(stub, request) -> Counter[str]:
    """Send 16 requests with a deadline of 5 s at a time; return how many ended with each status."""
    results = await asyncio.gather(*(stub.Classify(request, timeout=5) for _ in range(16)), return_exceptions=True)
    return Counter(each.code().name if isinstance(each, grpc.aio.AioRpcError) else "OK" for each in results)


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
