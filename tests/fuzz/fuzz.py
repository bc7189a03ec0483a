"""Throws hostile inputs at every parser, RPC and port: `make fuzz`; INPUTS, SEED and TARGETS say how many, and where.

Each target has a process, which is watched: it may not crash, hang, or take much memory. Input N of a target is the
same bytes for the same seed and corpus. One that does harm is saved, with the command that tries it again.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from file_targets import FILES  # noqa: E402
from mutations import input_of  # noqa: E402
from port_targets import PORTS  # noqa: E402
from rpc_targets import RPCS  # noqa: E402
from targets import Target, Trial  # noqa: E402

ALL = {target.name: target for target in [*RPCS, *PORTS, *FILES]}  # the slowest first, as they decide when it ends

HANG_S = 60.0
"""Until a process that gets nowhere is ended: an input has `SLOW_S` of processor time, and a batch of RPCs 20 s."""

_ADDRESS_BYTES = 8 << 30  # no input may take the machine's memory; the libraries alone map some GB
_MOST_FINDINGS = 20  # of a target; then it has been seen


@dataclass(slots=True)
class Result:
    """What became of a target."""

    inputs: int = 0
    seconds: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)


def main() -> None:
    """Runs what is asked for; the exit code is 1 if anything was found."""
    asked = _arguments()
    if asked.file:
        print(json.dumps(try_file(ALL[asked.targets[0]], asked.file)))
        return
    folder = Path(asked.findings)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {asked.seed}, {asked.inputs:,} inputs, targets: {', '.join(asked.targets)}", flush=True)
    started_at = time.monotonic()
    results = run(asked.targets, asked.inputs, asked.seed, folder, jobs=asked.jobs)
    seconds = time.monotonic() - started_at
    record = {
        "command": f"make fuzz INPUTS={asked.inputs} SEED={asked.seed}",
        "seed": asked.seed,
        "inputs": sum(result.inputs for result in results.values()),
        "seconds": round(seconds, 1),
        "findings": sum(len(result.findings) for result in results.values()),
        "targets": {
            name: {"inputs": each.inputs, "seconds": round(each.seconds, 1), "findings": each.findings}
            for name, each in results.items()
        },
    }
    for name, each in results.items():
        rate = each.inputs / max(each.seconds, 1e-3)
        print(
            f"{name:12} {each.inputs:>9,} inputs {each.seconds:7.1f} s {rate:>8,.0f}/s {len(each.findings):>4} findings"
        )
    print(f"{record['inputs']:,} inputs in {seconds:.0f} s: {record['findings']} findings")
    if asked.output:
        from bench import describe_machine

        Path(asked.output).write_text(json.dumps({**describe_machine(), **record}, indent=1) + "\n")
    sys.exit(1 if record["findings"] else 0)


def run(names: list[str], inputs: int, seed: int, folder: Path, *, jobs: int) -> dict[str, Result]:
    """Shares `inputs` between the targets, `jobs` of which run at a time."""
    total = sum(ALL[name].share for name in names)
    results = {name: Result() for name in names}
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in names:
        waiting.put(name)

    def work() -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except Empty:
                return
            _run_one(ALL[name], -(-inputs * ALL[name].share // total), seed, folder, results[name])

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(5) if threads[0].is_alive() else time.sleep(5)
        done = sum(result.inputs for result in results.values())
        found = sum(len(result.findings) for result in results.values())
        busy = [f"{name} {each.inputs:,}" for name, each in results.items() if each.inputs and not each.seconds]
        print(f"{done:>9,} inputs, {found} findings; {', '.join(busy)}", file=sys.stderr, flush=True)
    return results


def _run_one(target: Target, inputs: int, seed: int, folder: Path, result: Result) -> None:
    """One process after the other, each from where the last was ended."""
    context = multiprocessing.get_context("spawn")
    started_at, first = time.monotonic(), 0
    while first < inputs:
        at, receive_send = context.Value("q", first, lock=False), context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(target.name, first, inputs, seed, at, receive_send[1]))
        process.start()
        receive_send[1].close()
        ended = _watch(
            process, at, receive_send[0], lambda number, what: _save(target, number, seed, what, folder, result), result
        )
        if ended:
            _save(target, at.value, seed, ended, folder, result)
        first = at.value + 1 if ended else inputs
    result.seconds = time.monotonic() - started_at


def _watch(process: Any, at: Any, receive: Any, save: Callable[[int, str], None], result: Result) -> str:
    """Until the process has ended; returns what ended it too soon."""
    last, moved_at = -1, time.monotonic()
    while True:
        if receive.poll(0.2):
            try:
                save(*receive.recv())
                continue
            except EOFError:
                process.join()
                result.inputs = at.value + (not process.exitcode)
                return f"crash: the process ended with {process.exitcode}" if process.exitcode else ""
        result.inputs = at.value
        if at.value != last:
            last, moved_at = at.value, time.monotonic()
        elif time.monotonic() - moved_at > HANG_S:
            process.kill()
            process.join()
            return f"hang: {HANG_S:g} s without an end"


def _work(name: str, first: int, last: int, seed: int, at: Any, send: Any) -> None:
    """In a process of its own."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    warnings.simplefilter("ignore")  # such as those of pictures with odd headers
    target, most_mib = ALL[name], 0.0
    with begun(target) as trial:
        for start in range(first, last, target.batch):
            inputs = [input_of(target.make, name, seed, n) for n in range(start, min(last, start + target.batch))]

            def moved(place: int, start: int = start) -> None:
                at.value = start + place

            for place, what in trial(inputs, moved):
                send.send((start + place, what))
            taken_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            if start == first:
                most_mib = taken_mib
            elif taken_mib > most_mib + target.memory_mib:
                send.send((at.value, f"memory: {taken_mib - most_mib:.0f} MiB for it or one before it in its batch"))
                most_mib = taken_mib
    at.value = last - 1


class begun:  # noqa: N801 - used like a function
    """A target's trial, with a folder to write in."""

    def __init__(self, target: Target) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
        )
        self._begun = target.begin(Path(self._folder.name))

    def __enter__(self) -> Trial:
        return self._begun.__enter__()

    def __exit__(self, *exc: Any) -> None:
        try:
            self._begun.__exit__(*exc)
        finally:
            self._folder.cleanup()


def try_file(target: Target, *paths: Path) -> list[tuple[str, str]]:
    """What goes wrong with files: their names, and what."""
    with begun(target) as trial:
        return [
            (paths[place].name, what) for place, what in trial([path.read_bytes() for path in paths], lambda _: None)
        ]


def _save(target: Target, number: int, seed: int, what: str, folder: Path, result: Result) -> None:
    path = folder / f"{target.name}-{seed}-{number}"
    path.write_bytes(input_of(target.make, target.name, seed, number))
    again = f".venv/bin/python tests/fuzz/fuzz.py --targets {target.name} --file {path}"
    if len(result.findings) < _MOST_FINDINGS:
        result.findings.append({"number": number, "what": what, "again": again})
        print(f"{target.name} {number}: {what}\n  again: {again}", flush=True)


def _arguments() -> argparse.Namespace:
    def targets(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--targets", type=targets, default=list(ALL), help="some of them, by commas; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time; default: %(default)s")
    parser.add_argument("--findings", default="runs/fuzz", help="folder; default: %(default)s")
    parser.add_argument("--file", type=Path, help="try this one input of the first target instead")
    parser.add_argument("--output", help="JSON to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
