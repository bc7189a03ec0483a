"""Read from deploy/ how Kubernetes would run the service: the numbers of the simulated cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Probe:
    """A gRPC probe of a container; times in seconds."""

    service: str
    period_s: float
    timeout_s: float
    failures: int  # consecutive failures after which the container counts as not ready


@dataclass(frozen=True)
class Manifests:
    """The numbers of deploy/base that decide how pods are replaced; times in seconds."""

    replicas: int
    max_surge: int
    max_unavailable: int
    min_ready_s: float
    grace_s: float
    evicted_at_once: int  # most pods that the PodDisruptionBudget lets leave at the same time
    startup: Probe
    readiness: Probe
    settings: dict[str, str]  # environment variables of the service

    @classmethod
    def read(cls, folder: Path) -> "Manifests":
        """Read the manifests in `folder`, which is deploy/base or another version of it."""
        spec = _read(folder / "deployment.yaml")["spec"]
        pod = spec["template"]["spec"]
        update = spec["strategy"]["rollingUpdate"]
        container = pod["containers"][0]
        lines = [line for line in (folder / "settings.env").read_text().splitlines() if line and line[0] != "#"]
        return cls(
            replicas=spec.get("replicas", _read(folder / "horizontalpodautoscaler.yaml")["spec"]["minReplicas"]),
            max_surge=update["maxSurge"],
            max_unavailable=update["maxUnavailable"],
            min_ready_s=spec["minReadySeconds"],
            grace_s=pod["terminationGracePeriodSeconds"],
            evicted_at_once=_read(folder / "poddisruptionbudget.yaml")["spec"]["maxUnavailable"],
            startup=_probe(container["startupProbe"]),
            readiness=_probe(container["readinessProbe"]),
            settings=dict(line.split("=", 1) for line in lines),
        )


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _probe(probe: dict[str, Any]) -> Probe:
    return Probe(probe["grpc"]["service"], probe["periodSeconds"], probe["timeoutSeconds"], probe["failureThreshold"])
