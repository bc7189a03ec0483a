"""Simulate the parts of Kubernetes that replace pods, with real processes, a real DNS server and real time.

The class `Cluster` does what the controllers of a Deployment, of its ReplicaSets, of a PodDisruptionBudget and of
endpoints do, with the numbers of deploy/base. It was compared with a Kubernetes 1.36.2 of one node: docs/operations.md.
"""

import asyncio
import socket
import time
from itertools import count
from pathlib import Path

from cluster_ip import ClusterIp
from dns_server import DnsServer
from manifests import Manifests
from pod import Pod

NAME = "sketchbatch-headless.sketchbatch.svc.cluster.local"

_TICK_S = 0.1
_PROPAGATION_S = 1.0  # time after which DNS and kube-proxy know a change of a pod
_DNS_CACHE_S = 5.0  # CoreDNS: records of the cluster's names have a TTL of 5 s by default
_EVICTION_RETRY_S = 5.0  # `kubectl drain` repeats an eviction that the PodDisruptionBudget refused


class Cluster:
    """A Deployment with its pods, behind a headless Service and a Service with a ClusterIP."""

    def __init__(self, manifests: Manifests, models: Path, folder: Path) -> None:
        self.replicas = manifests.replicas
        self.pods: list[Pod] = []  # also those that have ended
        self._manifests = manifests
        self._models = models
        self._folder = folder
        self._port = _free_port()
        self._numbers = count(1)
        self._revision = 1
        self._dns = DnsServer()
        self._published: list[str] = []
        self._cluster_ip = ClusterIp()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def headless_target(self) -> str:
        """The gRPC target of the headless Service."""
        return f"dns://{self._dns.address}/{NAME}:{self._port}"

    @property
    def cluster_ip_target(self) -> str:
        """The gRPC target of the Service with a ClusterIP."""
        return self._cluster_ip.address

    async def __aenter__(self) -> "Cluster":
        await self._cluster_ip.start()
        self._dns.start()
        self._start(self._reconcile())
        self._start(self._renew_dns())
        await self.settle()
        await asyncio.sleep(_PROPAGATION_S + _DNS_CACHE_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(pod.kill() for pod in self.pods))
        await self._cluster_ip.stop()
        self._dns.stop()

    @property
    def present(self) -> list[Pod]:
        """The pods that were not stopped, oldest first."""
        return [pod for pod in self.pods if not pod.is_terminating]

    async def settle(self) -> None:
        """Wait until `replicas` pods of the current revision are available, and all other pods have ended."""
        while True:
            now = time.monotonic()
            present = self.present
            is_settled = len(present) == self.replicas and all(
                pod.revision == self._revision and pod.is_available(now) for pod in present
            )
            if is_settled and all(pod.ended.is_set() for pod in self.pods if pod.is_terminating):
                return
            self._raise_failures()
            await asyncio.sleep(_TICK_S)

    async def roll_out(self) -> None:
        """Replace all pods, as `kubectl rollout restart` does."""
        self._revision += 1
        await self.settle()

    async def scale(self, replicas: int) -> None:
        """Change the number of replicas, as the autoscaler does."""
        self.replicas = replicas
        await self.settle()

    async def drain(self, pods: list[Pod]) -> None:
        """Evict the pods one after another, as `kubectl drain` of their nodes does."""
        for pod in pods:
            while not self._may_evict():
                await asyncio.sleep(_EVICTION_RETRY_S)
            pod.terminate()
        await self.settle()

    async def delete(self, pods: list[Pod]) -> None:
        """Stop the pods at the same moment, as `kubectl delete pod` does."""
        for pod in pods:
            pod.terminate()
        await self.settle()

    def _may_evict(self) -> bool:
        healthy = sum(pod.is_ready for pod in self.present)
        return healthy > self.replicas - self._manifests.evicted_at_once

    async def _reconcile(self) -> None:
        """Create and stop pods until the end of the simulation."""
        while True:
            old = [pod for pod in self.present if pod.revision < self._revision]
            new = [pod for pod in self.present if pod.revision == self._revision]
            room = self.replicas + (self._manifests.max_surge if old else 0) - len(old) - len(new)
            for _ in range(min(room, self.replicas - len(new))):
                self._create_pod()
            for pod in self._surplus(old, new):
                pod.terminate()
            await asyncio.sleep(_TICK_S)

    def _surplus(self, old: list[Pod], new: list[Pod]) -> list[Pod]:
        """Return the pods to stop now: old ones while enough others are available, else those above `replicas`."""
        if not old:
            by_age = sorted(new, key=lambda pod: (pod.is_ready, -pod.ready_since))
            return by_age[: max(0, len(new) - self.replicas)]
        now = time.monotonic()
        available = sum(pod.is_available(now) for pod in old + new)
        unavailable_old = [pod for pod in old if not pod.is_available(now)]
        stoppable = max(0, available - (self.replicas - self._manifests.max_unavailable))
        return unavailable_old + [pod for pod in old if pod.is_available(now)][:stoppable]

    def _create_pod(self) -> None:
        pod = Pod(
            next(self._numbers),
            self._revision,
            self._manifests,
            self._port,
            self._models,
            self._folder,
            self._publish_later,
        )
        self.pods.append(pod)

    def _publish_later(self) -> None:
        ready = [pod.address for pod in self.present if pod.is_ready]
        terminating = [pod.address for pod in self.pods if pod.is_terminating and pod.is_ready]
        asyncio.get_running_loop().call_later(_PROPAGATION_S, self._publish, ready, terminating)

    def _publish(self, ready: list[str], terminating: list[str]) -> None:
        """Publish ready pods; without any, kube-proxy uses pods that terminate but still pass their readiness probe."""
        self._published = ready
        self._cluster_ip.endpoints = [(address, self._port) for address in ready or terminating]

    async def _renew_dns(self) -> None:
        """Answer with records that are up to the TTL old, as a caching DNS server does."""
        while True:
            self._dns.set_addresses(self._published)
            await asyncio.sleep(_DNS_CACHE_S)

    def _start(self, work) -> None:
        self._tasks.add(asyncio.create_task(work))

    def _raise_failures(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()


def _free_port() -> int:
    """Return a port that is free, with the next one, on all addresses of this machine."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("0.0.0.0", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("0.0.0.0", port + 1))
            except (OSError, OverflowError):
                continue
            return port
