"""Send requests to a cluster from several channels of one kind of caller, until standard input ends; print the figures.

python callers.py KIND TARGET --ages 42,6 --strict

Each age is the number of seconds before the event at which a group of channels is opened: gRPC resolves a name at most
once in 30 s, so channels of different ages know different replicas. No caller has a retry policy, except `client` and
`async_client` of this project, which retry by themselves. By default gRPC sends a call again that has not left the
client when its connection closes; `--strict` turns this off, too. The script runs with the Python of
.tools/openinference, too, which has tritonclient.
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

ROWS = 20
THREADS = 2  # threads for each age of the channels
PERIOD_S = 1 / 14  # seconds between the starts of two requests of a thread
TIMEOUT_S = 30.0

IS_STRICT = "--strict" in sys.argv
CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.use_local_subchannel_pool", 1),
    *([("grpc.enable_retries", 0)] if IS_STRICT else []),
]

BITMAPS = np.random.default_rng(3).integers(0, 256, (ROWS, 28, 28), np.uint8)


@dataclass
class Group:
    """The figures of the channels of one age."""

    sent: int = 0
    answered: int = 0
    longest_wait_s: float = 0.0
    failed: dict[str, int] = field(default_factory=dict)
    failed_from_s: float | None = None  # first failed request, in seconds since the start of the callers
    failed_to_s: float | None = None
    versions: dict[str, int] = field(default_factory=dict)  # answers by version of the model

    def answer(self, version: str, waited_s: float) -> None:
        self.answered += 1
        self.versions[version] = self.versions.get(version, 0) + 1
        self.longest_wait_s = max(self.longest_wait_s, waited_s)

    def fail(self, error: Exception, at_s: float) -> None:
        text = (
            f"{error.code().name}: {error.details()}"
            if isinstance(error, grpc.RpcError)
            else f"{type(error).__name__}: {error}"
        )
        self.failed[text[:200]] = self.failed.get(text[:200], 0) + 1
        self.failed_from_s = self.failed_from_s or round(at_s, 2)
        self.failed_to_s = round(at_s, 2)


class Schedule:
    """Times of the requests of one thread; ends when the callers stop."""

    def __init__(self, group: Group, started: float, stopped: threading.Event) -> None:
        self.group = group
        self._started = started
        self._stopped = stopped
        self._next = time.monotonic()

    def wait_s(self) -> float | None:
        """Return the seconds until the next request, or None after the end."""
        if self._stopped.is_set():
            return None
        self._next = max(self._next + PERIOD_S, time.monotonic() - PERIOD_S)
        return max(0.0, self._next - time.monotonic())

    def count(self, begun: float, outcome: str | Exception) -> None:
        """Count a request: `outcome` is the version of the model that answered, or the error."""
        if isinstance(outcome, str):
            self.group.answer(outcome, time.monotonic() - begun)
        else:
            self.group.fail(outcome, begun - self._started)


def plain(target: str, options: list[tuple[str, Any]]) -> Callable[[ExitStack], Callable[[], str]]:
    """Return a caller that uses generated stubs on one channel, without a retry policy."""
    from sketchbatch.v1 import classifier_pb2 as pb
    from sketchbatch.v1 import classifier_pb2_grpc

    def open_caller(stack: ExitStack) -> Callable[[], str]:
        channel = stack.enter_context(grpc.insecure_channel(target, [*CHANNEL_OPTIONS, *options]))
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)

        def call() -> str:
            answer = stub.Classify(pb.ClassifyRequest(bitmaps=BITMAPS.tobytes(), top_k=1), timeout=TIMEOUT_S)
            assert answer.rows == ROWS, answer.rows
            return str(answer.model_version)

        return call

    return open_caller


def round_robin(target: str, *, watches_health: bool):
    """Return a plain caller that uses all replicas."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if watches_health:
        config["healthCheckConfig"] = {"serviceName": ""}
    return plain(target, [("grpc.service_config", json.dumps(config))])


def triton(target: str):
    """Return a caller that uses tritonclient, unmodified, with round_robin and without a retry policy."""
    import tritonclient.grpc as tritonclient

    def open_caller(stack: ExitStack) -> Callable[[], str]:
        config = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
        options = [("grpc.service_config", config), *CHANNEL_OPTIONS]
        client = tritonclient.InferenceServerClient(target, channel_args=options)
        stack.callback(client.close)
        tensor = tritonclient.InferInput("bitmaps", BITMAPS.shape, "UINT8")
        tensor.set_data_from_numpy(BITMAPS)

        def call() -> str:
            result = client.infer("farm", [tensor], client_timeout=TIMEOUT_S)
            assert len(result.as_numpy("scores")) == ROWS
            return str(result.get_response().model_version)

        return call

    return open_caller


def our_client(target: str):
    """Return a caller that uses `Client`."""
    from sketchbatch_client import Client

    def open_caller(stack: ExitStack) -> Callable[[], str]:
        client = stack.enter_context(Client(target, timeout_s=TIMEOUT_S))
        return lambda: checked(client.classify(BITMAPS, top_k=1))

    return open_caller


def checked(answer: Any) -> str:
    """Return the version that answered; raise AssertionError if the labels are those of another version."""
    assert len(answer) == ROWS, len(answer)
    assert answer.labels[0].endswith(f"-{answer.model_version}"), (answer.labels, answer.model_version)
    return str(answer.model_version)


KINDS: dict[str, Callable[[str], Any]] = {
    "round_robin": lambda target: round_robin(target, watches_health=False),
    "round_robin_watch": lambda target: round_robin(target, watches_health=True),
    "cluster_ip": lambda target: plain(target, []),
    "tritonclient": triton,
    "client": our_client,
}


def run_threads(kind: str, target: str, groups: dict[int, Group], stopped: threading.Event) -> None:
    """Run the threads of a caller that blocks."""
    started = time.monotonic()
    oldest = max(groups)

    def send(age: int, group: Group) -> None:
        if stopped.wait(oldest - age):
            return
        with ExitStack() as stack:
            call = KINDS[kind](target)(stack)
            schedule = Schedule(group, started, stopped)
            while (wait_s := schedule.wait_s()) is not None:
                time.sleep(wait_s)
                with lock:
                    group.sent += 1
                begun = time.monotonic()
                try:
                    outcome: str | Exception = call()
                except Exception as exc:  # counted, whatever it is
                    outcome = exc
                with lock:
                    schedule.count(begun, outcome)

    lock = threading.Lock()
    threads = [
        threading.Thread(target=send, args=(age, group)) for age, group in groups.items() for _ in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def run_tasks(target: str, groups: dict[int, Group], stopped: threading.Event) -> None:
    """Run the tasks of `AsyncClient`."""
    from sketchbatch_client import AsyncClient

    started = time.monotonic()
    oldest = max(groups)

    async def send(age: int, group: Group) -> None:
        await asyncio.sleep(oldest - age)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(AsyncClient(target, timeout_s=TIMEOUT_S))
            schedule = Schedule(group, started, stopped)
            while (wait_s := schedule.wait_s()) is not None:
                await asyncio.sleep(wait_s)
                group.sent += 1
                begun = time.monotonic()
                try:
                    outcome: str | Exception = checked(await client.classify(BITMAPS, top_k=1))
                except Exception as exc:  # counted, whatever it is
                    outcome = exc
                schedule.count(begun, outcome)

    await asyncio.gather(*(send(age, group) for age, group in groups.items() for _ in range(THREADS)))


def main() -> None:
    """Run the callers that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, "async_client"])
    parser.add_argument("target")
    parser.add_argument("--ages", type=lambda text: [int(age) for age in text.split(",")], default=[0])
    parser.add_argument("--strict", action="store_true")
    arguments = parser.parse_args()
    groups = {age: Group() for age in arguments.ages}
    stopped = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
    if arguments.kind == "async_client":
        asyncio.run(run_tasks(arguments.target, groups, stopped))
    else:
        run_threads(arguments.kind, arguments.target, groups, stopped)
    print(json.dumps({age: vars(group) for age, group in groups.items()}))


if __name__ == "__main__":
    main()
