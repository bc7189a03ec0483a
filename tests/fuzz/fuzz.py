"""Send hostile inputs to every parser, RPC and port: `make fuzz INPUTS=N SEED=N TARGETS=NAME,NAME`.

Each target runs in a process of its own, which must not crash, hang or use much memory. The seed, the corpus and the
index of an input determine its bytes. Each harmful input is saved as a file. The results list the harmful inputs as
findings, each with the command that tries the input again.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

# The slowest targets are first, because they determine the end of a run.
ALL = {target.name: target for target in [*RPCS, *PORTS, *FILES]}

HANG_S = 60.0
"""Seconds without progress after which a process is killed.

Lower limits apply to inputs that make progress: `SLOW_S` CPU seconds per input in a parser, and 20 s per RPC.
"""

# limit of a process's address space: no input can use all memory of the machine; the libraries alone map some GB
_ADDRESS_BYTES = 8 << 30
_MAX_FINDINGS = 20  # largest number of findings that are recorded per target


@dataclass(slots=True)
class Result:
    """The result of fuzzing one target."""

    inputs: int = 0
    seconds: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)


def main() -> None:
    """Fuzz the targets, print and write the results, and exit with 1 if there are findings."""
    flags = _arguments()
    if flags.file:
        print(json.dumps(try_file(ALL[flags.targets[0]], flags.file)))
        return
    folder = Path(flags.findings)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {flags.seed}, {flags.inputs:,} inputs, targets: {', '.join(flags.targets)}", flush=True)
    started_at = time.monotonic()
    results = run(flags.targets, flags.inputs, flags.seed, folder, jobs=flags.jobs)
    seconds = time.monotonic() - started_at
    record = {
        "command": f"make fuzz INPUTS={flags.inputs} SEED={flags.seed}",
        "seed": flags.seed,
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
    if flags.output:
        from bench import describe_machine

        Path(flags.output).write_text(json.dumps({**describe_machine(), **record}, indent=1) + "\n")
    sys.exit(1 if record["findings"] else 0)


def run(names: list[str], inputs: int, seed: int, folder: Path, *, jobs: int) -> dict[str, Result]:
    """Divide `inputs` among the targets by their shares; fuzz `jobs` targets concurrently."""
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
    """Fuzz a target; after a crash or a hang, continue with the next input in a new process."""

    def save(number: int, problem: str) -> None:
        _save(target, number, seed, problem, folder, result)

    context = multiprocessing.get_context("spawn")
    started_at, first = time.monotonic(), 0
    while first < inputs:
        current, (receive, send) = context.Value("q", first, lock=False), context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(target.name, first, inputs, seed, current, send))
        process.start()
        send.close()
        if failure := _monitor(process, current, receive, save, result):
            save(current.value, failure)
        first = current.value + 1 if failure else inputs
    result.seconds = time.monotonic() - started_at


def _monitor(process: Any, current: Any, receive: Any, save: Callable[[int, str], None], result: Result) -> str:
    """Save the findings of a process until the process ends.

    Return a description of the crash or the hang that ended the process, or "" if the process has tried all inputs.
    """
    last, progress_at = -1, time.monotonic()
    while True:
        if receive.poll(0.2):
            try:
                save(*receive.recv())
                continue
            except EOFError:
                process.join()
                result.inputs = current.value + (not process.exitcode)
                return f"crash: the process ended with {process.exitcode}" if process.exitcode else ""
        result.inputs = current.value
        if current.value != last:
            last, progress_at = current.value, time.monotonic()
        elif time.monotonic() - progress_at > HANG_S:
            process.kill()
            process.join()
            return f"hang: {HANG_S:g} s without progress"


def _work(name: str, first: int, end: int, seed: int, current: Any, send: Any) -> None:
    """Try inputs `first` to `end` - 1 in a separate process; `current` holds the index of the latest input."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    warnings.simplefilter("ignore")  # such as warnings about unusual picture headers
    target, peak_mib = ALL[name], 0.0
    with prepared(target) as trial:
        for start in range(first, end, target.batch):
            inputs = [input_of(target.make, name, seed, n) for n in range(start, min(end, start + target.batch))]

            def progress(index: int, start: int = start) -> None:
                current.value = start + index

            for index, problem in trial(inputs, progress):
                send.send((start + index, problem))
            used_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            if start == first:
                peak_mib = used_mib
            elif used_mib > peak_mib + target.memory_mib:
                send.send(
                    (current.value, f"memory: {used_mib - peak_mib:.0f} MiB in the batch that ends with this input")
                )
                peak_mib = used_mib
    current.value = end - 1


@contextmanager
def prepared(target: Target) -> Iterator[Trial]:
    """Yield the function that tries inputs of `target`; its temporary folder is in memory if possible."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as folder,
        target.begin(Path(folder)) as trial,
    ):
        yield trial


def try_file(target: Target, *paths: Path) -> list[tuple[str, str]]:
    """Try the contents of files as inputs; return the file name and the problem of each harmful input."""
    with prepared(target) as trial:
        problems = trial([path.read_bytes() for path in paths], lambda _: None)
        return [(paths[index].name, problem) for index, problem in problems]


def _save(target: Target, number: int, seed: int, problem: str, folder: Path, result: Result) -> None:
    path = folder / f"{target.name}-{seed}-{number}"
    path.write_bytes(input_of(target.make, target.name, seed, number))
    again = f".venv/bin/python tests/fuzz/fuzz.py --targets {target.name} --file {path}"
    if len(result.findings) < _MAX_FINDINGS:
        result.findings.append({"number": number, "what": problem, "again": again})
        print(f"{target.name} {number}: {problem}\n  again: {again}", flush=True)


def _arguments() -> argparse.Namespace:
    def targets(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--targets", type=targets, default=list(ALL), help="comma-separated; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="concurrent processes; default: %(default)s")
    parser.add_argument("--findings", default="runs/fuzz", help="folder of harmful inputs; default: %(default)s")
    parser.add_argument("--file", type=Path, help="try only this input, with the first target")
    parser.add_argument("--output", help="results file (JSON)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
