"""Check in rendered Kubernetes manifests that a rollout, a node drain or a scale-down loses no request.

Each policy is a function that takes the manifests of one rendered folder and yields one line per violation. The times
come from the module of the service that decides how a replica stops.
"""

from collections.abc import Iterator

from kubernetes_manifests import Manifest, name_of, of, read_settings, services, unknown_fields
from sketchbatch_service.app.lame_duck import LEAST_MIN_READY_S, least_lame_duck_s
from sketchbatch_service.app.server import LATE_S

_BEHAVIOR = {
    direction: {"stabilizationWindowSeconds": {}, "policies": {"type": {}, "value": {}, "periodSeconds": {}}}
    for direction in ("scaleUp", "scaleDown")
}
SCALED_OBJECT = {
    "apiVersion": {},
    "kind": {},
    "metadata": {"name": {}, "namespace": {}},
    "spec": {
        "scaleTargetRef": {"name": {}},
        "pollingInterval": {},
        "minReplicaCount": {},
        "maxReplicaCount": {},
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _BEHAVIOR}},
        "triggers": {
            "type": {},
            "metricType": {},
            "metadata": {"serverAddress": {}, "query": {}, "threshold": {}, "ignoreNullValues": {}},
        },
    },
}
"""Fields that a ScaledObject of our manifests may have.

This list replaces the schema of KEDA, which the tests do not have.
"""


def in_time(manifests: list[Manifest]) -> Iterator[str]:
    """Require that the service can stop before Kubernetes kills it, and start before Kubernetes gives a rollout up."""
    for deployment, container, environment in services(manifests):
        found = read_settings(environment)
        if isinstance(found, str):
            continue  # the policy `configured` reports settings that the service rejects
        grace_s = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        stop_s = before_s + found.lame_duck_s + found.drain_s + LATE_S
        if not grace_s > stop_s:
            yield f"terminationGracePeriodSeconds must be above {stop_s}, got {grace_s}"
        deadline_s = deployment["spec"].get("progressDeadlineSeconds", 600)
        progress_s = _progress_s(deployment, container, grace_s)
        if not deadline_s > progress_s:
            yield f"progressDeadlineSeconds must be above {progress_s}, got {deadline_s}"


def _progress_s(deployment: Manifest, container: Manifest, grace_s: int) -> int:
    """Return the longest time in which one new pod becomes available.

    Without surge, the new pod may have to wait for the CPU or GPU of an old pod, which stops first.
    """
    probe = container.get("startupProbe", {})
    start_s = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
    wait_s = 0 if deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] else grace_s
    return wait_s + start_s + deployment["spec"].get("minReadySeconds", 0)


def budgeted(manifests: list[Manifest]) -> Iterator[str]:
    """Require that clients know the new pods before an old pod stops.

    All connections to the old pod must reach their maximum age, and close, before its lame duck time ends.
    """
    for deployment, _, environment in services(manifests):
        ready_s = deployment["spec"].get("minReadySeconds", 0)
        if ready_s < LEAST_MIN_READY_S:
            yield f"minReadySeconds must be at least {LEAST_MIN_READY_S}, got {ready_s}"
        found = read_settings(environment)
        if isinstance(found, str):
            continue  # the policy `configured` reports settings that the service rejects
        if not found.max_connection_age_s:
            yield "SKETCHBATCH_MAX_CONNECTION_AGE_S must be set: else clients never resolve the name again"
            continue
        least_s = least_lame_duck_s(found.max_connection_age_s)
        if found.lame_duck_s < least_s:
            yield f"SKETCHBATCH_LAME_DUCK_S must be at least {least_s:g}, got {found.lame_duck_s:g}"


def scaled(manifests: list[Manifest]) -> Iterator[str]:
    """Require one autoscaler, `replicas` equal to its minimum, and fewer stopping pods than this minimum.

    A Deployment without `replicas` starts with one pod.
    """
    for deployment in of("Deployment", manifests):
        floors = _floors(manifests)
        if [target for target, _ in floors] != [name_of(deployment)]:
            yield "there must be one autoscaler, for this Deployment"
            continue
        floor, replicas = floors[0][1], deployment["spec"].get("replicas")
        if floor < 2 or replicas != floor:
            yield f"replicas and the autoscaler's minimum must be equal and at least 2, got {replicas} and {floor}"
        update = deployment["spec"]["strategy"]["rollingUpdate"]
        budgets = [m["spec"]["maxUnavailable"] for m in of("PodDisruptionBudget", manifests)]
        leaving = max([update["maxUnavailable"], *budgets])
        if not leaving < floor:
            yield f"fewer than {floor} replicas may stop at once, got {leaving}"


def _floors(manifests: list[Manifest]) -> list[tuple[str, int]]:
    """Return the target and the least number of replicas of each autoscaler."""
    scalers = [(m["spec"], "minReplicas", 1) for m in of("HorizontalPodAutoscaler", manifests)]
    scalers += [(m["spec"], "minReplicaCount", 0) for m in of("ScaledObject", manifests)]
    return [(spec["scaleTargetRef"]["name"], spec.get(field, default)) for spec, field, default in scalers]


def triggered(manifests: list[Manifest]) -> Iterator[str]:
    """Require that a ScaledObject has only known fields, and that the metadata of its triggers are strings."""
    for scaler in of("ScaledObject", manifests):
        yield from (f"unknown field {path}" for path in unknown_fields(scaler, SCALED_OBJECT, "ScaledObject"))
        for trigger in scaler["spec"]["triggers"]:
            numbers = [key for key, value in trigger["metadata"].items() if not isinstance(value, str)]
            yield from (f"{key} of the trigger {trigger['type']} must be a string" for key in numbers)
