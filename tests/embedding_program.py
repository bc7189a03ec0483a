"""Run the service several times on the event loop of a program, and check the state of the program afterwards.

Usage: embedding_program.py MODEL TRANSPORT. The program prints "done" if all checks succeed.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog
from sketchbatch_service.app.server import serve
from sketchbatch_service.settings import Settings

LATE_S = 4.0  # if a stop does not finish, the service ends the process after this many seconds
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def call_when_serving(stop: Callable[[], object]) -> None:
    """Call `stop` as soon as the service logs that it is ready; write no log."""

    def process(_: object, __: str, event: dict) -> dict:
        if event["event"] == "SERVING":
            stop()
        raise structlog.DropEvent

    structlog.configure(processors=[process])


def threads_and_sockets() -> tuple[int, int]:
    """Return the number of threads and of open sockets of this process."""
    links = []
    for descriptor in Path("/dev/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor with which the folder was listed
            links.append(str(descriptor.readlink()))
    return threading.active_count(), sum(link.startswith("socket:") for link in links)


async def run_service(model: Path, transport: str) -> None:
    """Serve on free ports until SIGTERM."""
    free = "127.0.0.1:0"
    ports = {"address": free, "metrics_address": free, "probe_address": free}
    await serve(Settings(model=model, transport=transport, **ports, lame_duck_s=0, drain_s=0), late_s=LATE_S)


async def main(model: Path, transport: str) -> None:
    """Run the service three times, and check the program's signals, tasks, threads and sockets."""
    received = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    has_received_usr1 = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, has_received_usr1.set)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    call_when_serving(lambda: os.kill(os.getpid(), signal.SIGTERM))
    await run_service(model, transport)
    after_first = threads_and_sockets()
    await run_service(model, transport)
    assert threads_and_sockets() == after_first, (after_first, threads_and_sockets())
    serving = asyncio.create_task(run_service(model, transport))
    call_when_serving(serving.cancel)
    await asyncio.wait([serving])
    assert serving.cancelled()
    assert threads_and_sockets() == after_first, (after_first, threads_and_sockets())
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(has_received_usr1.wait(), 10)
    assert asyncio.get_running_loop().get_exception_handler() is None
    assert received == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM]
    await asyncio.sleep(LATE_S + 1)  # a time limit that was not cancelled would end the process here
    print("done")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
