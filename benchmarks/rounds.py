"""Run each workload on each contestant in turn, for each repeat and model."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from contest import Contestant, Counted, Load
from peers import Peer
from results import DISTURBED_CPUS, Figures, Results, figures, mix_figures

WARM_UP_S = 0.3
AGREE_WITHIN = 1e-4  # largest difference of scores of the same drawings: batch sizes change the order of additions


@dataclass(frozen=True, slots=True)
class Workload:
    """Concurrent loads, measured for `windows` times the length of one window; long requests need more than one."""

    loads: tuple[Load, ...]
    windows: float


_BULK, _SINGLE = Load(1024, 4), Load(1, 1)

MIX = "mix"  # bulk requests and, concurrently, one-row requests one after the other
PACED = "paced"  # bulk requests and, concurrently, one-row requests at the same rate for each contestant
WORKLOADS = {
    "1024x4": Workload((_BULK,), 2),
    "64x8": Workload((Load(64, 8),), 1),
    "1x32": Workload((Load(1, 32),), 1),
    "1x1": Workload((_SINGLE,), 1),
    MIX: Workload((_BULK, _SINGLE), 2),
    PACED: Workload((_BULK, Load(1, 4, per_s=100)), 2),
}


class Disagreement(RuntimeError):
    """Two contestants return different scores for the same drawings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The models, peers and workloads to measure."""

    models: dict[str, Path]
    peers: Sequence[Peer]
    workloads: Sequence[str]
    drawings: Path
    repeats: int
    seconds: float
    """Length of one window in seconds."""
    attempts: int
    """Largest number of attempts to measure a window without other work on the machine."""


def run(plan: Plan) -> Results:
    """Measure every contestant on every model and workload in every repeat."""
    results = Results({peer.name: peer.limits for peer in plan.peers})
    for model in plan.models:
        for repeat in range(plan.repeats):
            _show(f"{model}, repeat {repeat + 1} of {plan.repeats}\n")
            with ExitStack() as stack:
                contestants = [stack.enter_context(_start(plan, peer, plan.models[model])) for peer in plan.peers]
                _check_agreement(contestants)
                # Each repeat starts with another contestant, because the state of the machine changes.
                turn = repeat % len(contestants)
                _run_workloads(plan, model, contestants[turn:] + contestants[:turn], results)
                for contestant in contestants:
                    if contestant.server:
                        results.add(model, "server", contestant.peer.name, contestant.server.figures())
    return results


def _start(plan: Plan, peer: Peer, model: Path) -> Contestant:
    loads = max(len(WORKLOADS[name].loads) for name in plan.workloads if peer.takes(name))
    return Contestant(peer, model=model, drawings=plan.drawings, generators=loads)


def _run_workloads(plan: Plan, model: str, contestants: Sequence[Contestant], results: Results) -> None:
    for name in plan.workloads:
        _show(f"  {name}:")
        for contestant in contestants:
            if contestant.peer.takes(name):
                found = _measure(plan, contestant, name)
                results.add(model, name, contestant.peer.name, found)
                _show(f" {contestant.peer.name} {next(iter(found.values())):,.0f}")
        _show(" rows/s\n")


def _measure(plan: Plan, contestant: Contestant, name: str) -> Figures:
    """Measure a window after a warm-up, and repeat this if other work disturbed it; return the least disturbed one."""
    workload = WORKLOADS[name]
    attempts: list[list[Counted]] = []
    while not attempts or (len(attempts) < plan.attempts and attempts[-1][0]["other_cpus"] > DISTURBED_CPUS):
        contestant.measure(workload.loads, workload.windows * WARM_UP_S)
        attempts.append(contestant.measure(workload.loads, workload.windows * plan.seconds))
    counted = min(attempts, key=lambda attempt: attempt[0]["other_cpus"])
    return mix_figures(*counted) if name in (MIX, PACED) else figures(*counted)


def _check_agreement(contestants: Sequence[Contestant]) -> None:
    """Raise `Disagreement` unless all contestants that compute scores return equal scores for the same drawings."""
    computing = [each for each in contestants if each.peer.computes]
    for first, other in pairwise(computing):
        difference = float(np.abs(np.subtract(first.scores, other.scores)).max())
        if not difference <= AGREE_WITHIN:
            raise Disagreement(
                f"{first.peer.name} and {other.peer.name} must agree within {AGREE_WITHIN}, got {difference:.2g}"
            )


def _show(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
