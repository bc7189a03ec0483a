"""Replace the replicas of a simulated cluster under load, and count the requests that fail or are lost.

python tests/cluster --output FIGURES.json

Events: a rollout, a drain of one node and of all nodes, scaling up and down, the deletion of all pods at once, and a
new model version. The callers are those of callers.py. The exit code is 1 if a request failed or was lost, or if a
request of the clients of this project waited for more than a second.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from bench import describe_machine  # noqa: E402
from cluster import Cluster  # noqa: E402
from manifests import Manifests  # noqa: E402
from onnx_models import write_model  # noqa: E402

CALLERS = ("round_robin", "round_robin_watch", "cluster_ip", "tritonclient", "client", "async_client")
OURS = ("client", "async_client")
AGES = (42, 6)  # seconds before an event at which callers open their channels
LONGEST_WAIT_S = 1.0  # longest wait for a response that the clients of this project may have

Figures = dict[str, dict[str, dict[str, Any]]]  # by kind of caller and age of the channels


async def roll_out(cluster: Cluster) -> None:
    """Replace all pods by pods of a new revision."""
    await cluster.roll_out()


async def drain_one(cluster: Cluster) -> None:
    """Drain the node of one pod."""
    await cluster.drain(cluster.present[:1])


async def drain_all(cluster: Cluster) -> None:
    """Drain the nodes of all pods, one after another."""
    await cluster.drain(cluster.present)


async def scale(cluster: Cluster) -> None:
    """Double the number of replicas, then halve it."""
    await cluster.scale(2 * cluster.replicas)
    await cluster.scale(cluster.replicas // 2)


async def delete_all(cluster: Cluster) -> None:
    """Delete all pods at the same moment."""
    await cluster.delete(cluster.present)


async def update_model(cluster: Cluster) -> None:
    """Add version 2 of the model to one pod after another, as volumes and nodes show it at different moments."""
    for pod in cluster.present:
        write_version(pod.models, 2)
        await asyncio.sleep(7)
    await asyncio.sleep(10)


EVENTS: dict[str, Callable[[Cluster], Awaitable[None]]] = {
    "rollout": roll_out,
    "drain of one node": drain_one,
    "drain of all nodes": drain_all,
    "scaling": scale,
    "deletion of all pods": delete_all,
    "model update": update_model,
}


def write_version(models: Path, number: int) -> None:
    """Write a version of the model `farm` to another folder, then move it to its place; its labels end in -VERSION."""
    labels = [f"{name}-{number}" for name in ("ant", "bee", "cow")]
    ready = models / ".ready" / str(number)
    write_model(ready / "model.onnx", seed=number, labels=labels)
    (models / "farm").mkdir(exist_ok=True)
    ready.rename(models / "farm" / str(number))


async def simulate(name: str, manifests: Manifests, kinds: list[str], *, is_strict: bool) -> dict[str, Any]:
    """Start a cluster and its callers, let one event happen, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        models.mkdir()
        write_version(models, 1)
        async with Cluster(manifests, models, Path(folder, "pods")) as cluster:
            callers = {kind: await start_callers(kind, cluster, is_strict=is_strict) for kind in kinds}
            await asyncio.sleep(max(AGES))
            begun = time.monotonic()
            await EVENTS[name](cluster)
            took_s = time.monotonic() - begun
            await asyncio.sleep(2)  # for the responses to the requests in flight
            answers = await asyncio.gather(*(process.communicate(b"") for process in callers.values()))
            figures: Figures = {kind: json.loads(out) for kind, (out, _) in zip(callers, answers, strict=True)}
            killed = sum(pod.was_killed for pod in cluster.pods)
    return {"event": name, "took_s": round(took_s, 1), "pods_killed": killed, "callers": figures}


async def start_callers(kind: str, cluster: Cluster, *, is_strict: bool) -> asyncio.subprocess.Process:
    """Start the process of one kind of caller."""
    target = cluster.cluster_ip_target if kind == "cluster_ip" else cluster.headless_target
    python = str(ROOT / ".tools/openinference/bin/python") if kind == "tritonclient" else sys.executable
    words = [python, str(ROOT / "tests/cluster/callers.py"), kind, target, "--ages", ",".join(map(str, AGES))]
    words += ["--strict"] * is_strict
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, env=os.environ)


def faults(result: dict[str, Any]) -> list[str]:
    """Return a line for each kind of caller whose requests failed, were lost or, for our clients, waited too long."""
    found = [] if not result["pods_killed"] else [f"{result['pods_killed']} pods did not end in their grace period"]
    for kind, groups in result["callers"].items():
        for age, group in groups.items():
            where = f"{kind}, channels {age} s old"
            failed = sum(group["failed"].values())
            if failed:
                span = f"from {group['failed_from_s']} s to {group['failed_to_s']} s"
                found.append(f"{where}: {failed} failed, {span}: {group['failed']}")
            if lost := group["sent"] - group["answered"] - failed:
                found.append(f"{where}: {lost} lost")
            if kind in OURS and group["longest_wait_s"] > LONGEST_WAIT_S:
                found.append(f"{where}: one waited {group['longest_wait_s']:.1f} s")
    return found


def show(result: dict[str, Any]) -> None:
    """Print one row for each kind of caller and age of its channels."""
    print(f"\n{result['event']}, {result['took_s']} s")
    print(f"  {'caller':18} {'channels':>9} {'failed / sent':>16} {'longest wait':>13}")
    for kind, groups in result["callers"].items():
        for age, group in groups.items():
            failed = f"{sum(group['failed'].values())} / {group['sent']}"
            print(f"  {kind:18} {age + ' s old':>9} {failed:>16} {group['longest_wait_s']:>11.2f} s")
    for fault in faults(result):
        print(f"  FAULT {fault}")
    sys.stdout.flush()


def main() -> int:
    """Run the events that the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", default=",".join(EVENTS), help="names of events, separated by commas")
    parser.add_argument(
        "--callers", default="round_robin,round_robin_watch,cluster_ip,tritonclient,client,async_client"
    )
    parser.add_argument("--manifests", type=Path, default=ROOT / "deploy/base", help="folder of the manifests")
    parser.add_argument("--strict", action="store_true", help="turn off gRPC's repetition of unsent calls, too")
    parser.add_argument("--output", type=Path, help="JSON file of the figures")
    arguments = parser.parse_args()
    manifests = Manifests.read(arguments.manifests)
    results = []
    for name in arguments.events.split(","):
        results.append(asyncio.run(simulate(name, manifests, arguments.callers.split(","), is_strict=arguments.strict)))
        show(results[-1])
    if arguments.output:
        arguments.output.write_text(
            json.dumps(about(manifests, is_strict=arguments.strict) | {"events": results}, indent=1) + "\n"
        )
    return int(any(map(faults, results)))


def about(manifests: Manifests, *, is_strict: bool) -> dict[str, Any]:
    """Return what the figures were measured with."""
    numbers = vars(manifests) | {"startup": vars(manifests.startup), "readiness": vars(manifests.readiness)}
    return describe_machine() | {"command": "make cluster-sim", "is_strict": is_strict, "manifests": numbers}


if __name__ == "__main__":
    sys.exit(main())
