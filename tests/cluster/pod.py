"""Run one pod of the simulated cluster: a real service process with an address of its own, probed as by a kubelet."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from manifests import Manifests, Probe

SERVE = Path(sys.executable).parent / "sketchbatch-serve"


class Pod:
    """A pod, from the start of its process to the end; `on_change` is called whenever its readiness may have changed.

    Args:
        number: Number of the pod from 1 to 254, which becomes its address 127.0.1.NUMBER.
        revision: Number of the rollout that created the pod.
        port: Port of the service on each pod's address.
        models: Model repository that the pod gets a copy of, as if its node had loaded it.
        folder: Where the copy is written.
    """

    def __init__(
        self, number: int, revision: int, manifests: Manifests, port: int, models: Path, folder: Path, on_change
    ) -> None:
        self.address = f"127.0.1.{number}"
        self.revision = revision
        self.models = folder / str(number)
        self.is_ready = False
        self.is_terminating = False
        self.was_killed = False
        self.ready_since = 0.0
        self.ended = asyncio.Event()
        self.log: deque[str] = deque(maxlen=200)
        self._manifests = manifests
        self._on_change = on_change
        self._probe_address = f"{self.address}:{port + 1}"
        shutil.copytree(models, self.models)
        settings = manifests.settings | {
            "SKETCHBATCH_MODEL": str(self.models),
            "SKETCHBATCH_ADDRESS": f"{self.address}:{port}",
            "SKETCHBATCH_PROBE_ADDRESS": self._probe_address,
            "SKETCHBATCH_METRICS_ADDRESS": "",
            "SKETCHBATCH_PROVIDER": "cpu",
            "SKETCHBATCH_THREADS": "1",
        }
        self._process = subprocess.Popen([SERVE], env=os.environ | settings, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self._keep_log, daemon=True).start()
        self._tasks = [asyncio.create_task(self._watch_process()), asyncio.create_task(self._probe())]

    def is_available(self, now: float) -> bool:
        """Return whether the Deployment counts the pod as available: ready for `minReadySeconds`."""
        return self.is_ready and not self.is_terminating and now - self.ready_since >= self._manifests.min_ready_s

    def terminate(self) -> None:
        """Stop the pod as Kubernetes does: SIGTERM now, SIGKILL after the grace period."""
        if not self.is_terminating:
            self.is_terminating = True
            self._on_change()
            self._process.terminate()
            self._tasks.append(asyncio.create_task(self._kill_late()))

    async def kill(self) -> None:
        """End the process at once, at the end of the simulation."""
        self.is_terminating = True
        self._process.kill()
        await self.ended.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def events(self) -> list[dict]:
        """Return the latest events in the log of the service."""
        return [json.loads(line) for line in self.log]

    def _keep_log(self) -> None:
        assert self._process.stderr
        with self._process.stderr:
            self.log.extend(self._process.stderr)

    async def _watch_process(self) -> None:
        while self._process.poll() is None:
            await asyncio.sleep(0.05)
        self.is_ready = False
        self.ended.set()
        self._on_change()
        if not self.is_terminating:
            raise RuntimeError(f"the service of {self.address} ended by itself: {list(self.log)[-3:]}")

    async def _kill_late(self) -> None:
        await asyncio.sleep(self._manifests.grace_s)
        if not self.ended.is_set():
            self.was_killed = True
            self._process.kill()

    async def _probe(self) -> None:
        """Probe until the process ends: the startup probe until it succeeds, then the readiness probe."""
        probe, failures = self._manifests.startup, 0
        while not self.ended.is_set():
            if await self._succeeds(probe):
                probe, failures = self._manifests.readiness, 0
                self._set_ready(True)
            else:
                failures += 1
                if failures >= probe.failures:
                    self._set_ready(False)
            await asyncio.sleep(probe.period_s)

    async def _succeeds(self, probe: Probe) -> bool:
        async with grpc.aio.insecure_channel(self._probe_address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            try:
                answer = await check(health_pb2.HealthCheckRequest(service=probe.service), timeout=probe.timeout_s)
            except grpc.aio.AioRpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def _set_ready(self, is_ready: bool) -> None:
        if is_ready and not self.is_ready:
            self.ready_since = time.monotonic()
        if is_ready != self.is_ready:
            self.is_ready = is_ready
            self._on_change()
