"""Check rendered Kubernetes manifests against our own policies, which check more than the schemas and checkov do.

Each policy is a function that takes the manifests of one rendered folder and yields one line per violation. Some
policies compare the manifests with the code of the service: with the settings that the service would read, and with
the service names that its health check knows.
"""

import re
from collections.abc import Iterator
from typing import Any

import click
from click.testing import CliRunner
from sketchbatch_service import settings as service_settings
from sketchbatch_service.api.health import LIVENESS
from sketchbatch_service.api.health import SERVICE as HEALTH
from sketchbatch_service.api.openinference import wire
from sketchbatch_service.app.server import LATE_S, SERVICE
from sketchbatch_service.settings import Settings

Manifest = dict[str, Any]

CLASSIFIER = SERVICE.full_name

MODEL_HEALTH = ("", CLASSIFIER, wire.SERVICE)
PROBED = {
    "startupProbe": MODEL_HEALTH,
    "readinessProbe": MODEL_HEALTH,
    "livenessProbe": (LIVENESS,),  # a restart of the process would not repair a failing model
}
"""The gRPC service names that a probe may check with grpc.health.v1, by kind of probe."""

ROUTE = {
    "apiVersion": {},
    "kind": {},
    "metadata": {"name": {}, "namespace": {}},
    "spec": {
        "parentRefs": {"name": {}, "namespace": {}},
        "hostnames": {},
        "rules": {"matches": {"method": {"service": {}}}, "backendRefs": {"name": {}, "port": {}}},
    },
}
"""Fields that a GRPCRoute of our manifests may have.

This list replaces the schema of the Gateway API, which the tests do not have.
"""


def violations(manifests: list[Manifest]) -> list[str]:
    """Return one line per violation of any policy in `manifests`."""
    policies = (restricted, sealed, mounted, configured, probed, in_time, connected, scaled, routed, sharded)
    return [f"{policy.__name__}: {line}" for policy in policies for line in policy(manifests)]


def restricted(manifests: list[Manifest]) -> Iterator[str]:
    """Require Pod Security's level "restricted" and a read-only root file system for each container."""
    for name, pod in _pods(manifests):
        own = pod.get("securityContext", {})
        for container in _containers(pod):
            where = f"{name}/{container['name']}"
            mine = container.get("securityContext", {})
            both = {**own, **mine}
            wanted = {"runAsNonRoot": True, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
            for field, value in wanted.items():
                if both.get(field) is not value:
                    yield f"{where}: {field} must be {value}"
            if not both.get("runAsUser"):
                yield f"{where}: runAsUser must be a number, not 0"
            if mine.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where}: capabilities must be {{'drop': ['ALL']}}, got {mine.get('capabilities')}"
            if both.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield f"{where}: seccompProfile must be RuntimeDefault"
            if mine.get("privileged"):
                yield f"{where}: privileged must not be set"


def sealed(manifests: list[Manifest]) -> Iterator[str]:
    """Forbid access to the node and to the cluster's API, and require that memory request and limit are equal."""
    for name, pod in _pods(manifests):
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(field):
                yield f"{name}: {field} must not be set"
        yield from (f"{name}: volumes must not use hostPath" for each in pod.get("volumes", []) if "hostPath" in each)
        for field in ("automountServiceAccountToken", "enableServiceLinks"):
            if pod.get(field) is not False:
                yield f"{name}: {field} must be false"
        for container in _containers(pod):
            asked = container.get("resources", {})
            memory = [asked.get(kind, {}).get("memory") for kind in ("requests", "limits")]
            if None in memory or memory[0] != memory[1] or "cpu" not in asked["requests"]:
                yield f"{name}/{container['name']}: must have a CPU request and equal memory request and limit"


def mounted(manifests: list[Manifest]) -> Iterator[str]:
    """Require that pods mount exactly the volumes that they declare, and mount no volume by subPath."""
    for name, pod in _pods(manifests):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = [mount for container in _containers(pod) for mount in container.get("volumeMounts", [])]
        if {mount["name"] for mount in mounts} != volumes:
            yield f"{name}: mounts {sorted({mount['name'] for mount in mounts})}, has volumes {sorted(volumes)}"
        yield from (
            f"{name}: subPath must not be used: its file is never updated" for each in mounts if "subPath" in each
        )


def configured(manifests: list[Manifest]) -> Iterator[str]:
    """Require that the service accepts the settings in the ConfigMap.

    The container must have the ports of these settings, and the files that they name must come from a Secret.
    """
    for pod, container, environment in _services(manifests):
        yield from (f"{key} is not a setting of the service" for key in environment if key not in _variables())
        settings = _settings(environment)
        if isinstance(settings, str):
            yield settings
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        named = {"grpc": settings.address, "probe": settings.probe_address, "metrics": settings.metrics_address}
        if ports != {name: _port(address) for name, address in named.items()}:
            yield f"containerPorts must be those of the settings {named}, got {ports}"
        volumes = {mount["mountPath"]: mount.get("readOnly") for mount in container.get("volumeMounts", [])}
        yield from (f"{path} must be mounted read-only" for path, is_read_only in volumes.items() if not is_read_only)
        offered = {
            f"/{mount['name']}/{item['path']}"
            for mount in container.get("volumeMounts", [])
            for volume in pod["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            for item in source["secret"]["items"]
        }
        files = (settings.tls_cert, settings.tls_key, settings.tls_client_ca, settings.token_file)
        yield from (f"{file} must come from a Secret" for file in files if file and str(file) not in offered)


def probed(manifests: list[Manifest]) -> Iterator[str]:
    """Require that each probe is a gRPC health check of the probe port, with a service name that fits the probe."""
    for _, container, environment in _services(manifests):
        port = _port(environment.get("SKETCHBATCH_PROBE_ADDRESS", ""))
        for probe, names in PROBED.items():
            asked = container.get(probe, {}).get("grpc", {})
            if asked.get("port") != port:
                yield f"{probe} must check port {port} by gRPC, got {asked.get('port')}"
            if asked.get("service", "") not in names:
                yield f"{probe} must check one of the services {names}, got {asked.get('service', '')!r}"


def in_time(manifests: list[Manifest]) -> Iterator[str]:
    """Require a grace period that is long enough for the service to drain and exit before Kubernetes kills it."""
    for pod, container, environment in _services(manifests):
        settings = _settings(environment)
        if isinstance(settings, str):
            continue  # the policy `configured` reports settings that the service rejects
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = before + settings.lame_duck_s + settings.drain_s + LATE_S
        if not pod["terminationGracePeriodSeconds"] > needed:
            yield f"terminationGracePeriodSeconds must be above {needed}, got {pod['terminationGracePeriodSeconds']}"


def connected(manifests: list[Manifest]) -> Iterator[str]:
    """Require that Services, disruption budgets, network policies and spread constraints select our pods.

    Services and network policies must name existing ports, but not the probe port.
    """
    for pod, container, _ in _services(manifests):
        labels = next(m for m in manifests if m["kind"] == "Deployment")["spec"]["template"]["metadata"]["labels"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for service in _of("Service", manifests):
            for port in service["spec"]["ports"]:
                if (port["targetPort"], port["port"]) != ("grpc", ports["grpc"]):
                    yield f"Service {service['metadata']['name']} must lead from {ports['grpc']} to grpc, got {port}"
        selectors = [m["spec"]["selector"] for m in _of("Service", manifests)]
        selectors += [m["spec"]["selector"]["matchLabels"] for m in _of("PodDisruptionBudget", manifests)]
        selectors += [m["spec"]["podSelector"]["matchLabels"] for m in _of("NetworkPolicy", manifests)]
        selectors += [s["labelSelector"]["matchLabels"] for s in pod["topologySpreadConstraints"]]
        yield from (f"{each} selects none of our pods" for each in selectors if not each.items() <= labels.items())
        if len(selectors) != 6:
            yield "there must be two Services, a PodDisruptionBudget, a NetworkPolicy and spread over nodes and zones"
        for policy in _of("NetworkPolicy", manifests):
            allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            if allowed != {ports["grpc"], ports["metrics"]}:
                yield f"NetworkPolicy must allow the ports grpc and metrics of {ports}, got {sorted(allowed)}"
            if not all(rule.get("from") for rule in policy["spec"]["ingress"]):
                yield "each ingress rule of a NetworkPolicy must name its sources"


def scaled(manifests: list[Manifest]) -> Iterator[str]:
    """Require that only the autoscaler sets the number of replicas, and that one replica always remains."""
    for deployment in _of("Deployment", manifests):
        if "replicas" in deployment["spec"]:
            yield "replicas must not be set: each apply would undo the autoscaler's number"
        scalers = [m["spec"] for m in _of("HorizontalPodAutoscaler", manifests)]
        if [each["scaleTargetRef"]["name"] for each in scalers] != [deployment["metadata"]["name"]]:
            yield "there must be one autoscaler, for this Deployment"
            continue
        update = deployment["spec"]["strategy"]["rollingUpdate"]
        leaving = [
            update["maxUnavailable"],
            *(m["spec"]["maxUnavailable"] for m in _of("PodDisruptionBudget", manifests)),
        ]
        if not max(leaving) < scalers[0]["minReplicas"]:
            yield f"fewer than {scalers[0]['minReplicas']} replicas may stop at once, got {max(leaving)}"


def routed(manifests: list[Manifest]) -> Iterator[str]:
    """Require that a GRPCRoute has only known fields, and names existing Kubernetes Services and gRPC services."""
    ports = {m["metadata"]["name"]: [port["port"] for port in m["spec"]["ports"]] for m in _of("Service", manifests)}
    for route in _of("GRPCRoute", manifests):
        yield from (f"unknown field {path}" for path in _unknown(route, ROUTE, "GRPCRoute"))
        for rule in route["spec"]["rules"]:
            for backend in rule.get("backendRefs", []):
                if backend["port"] not in ports.get(backend["name"], []):
                    yield f"no Service {backend['name']}:{backend['port']}"
            for match in rule.get("matches", []):
                if match["method"]["service"] not in (CLASSIFIER, wire.SERVICE, HEALTH):
                    yield f"no gRPC service {match['method']['service']}"


def sharded(manifests: list[Manifest]) -> Iterator[str]:
    """Require that bulk Jobs have a shard for each index, a folder for each run, and no retry that cannot succeed."""
    for manifest in _of("Job", manifests):
        job, container = manifest["spec"], manifest["spec"]["template"]["spec"]["containers"][0]
        run = next((each["value"] for each in container["env"] if each["name"] == "RUN"), "")
        if not run or manifest["metadata"]["name"] != f"sketchbatch-{container['name']}-{run}":
            yield f"the name of the Job must end with the value of RUN, got {manifest['metadata']['name']} and {run!r}"
        if "--output=/scores/$(RUN)/labels.parquet" not in container["args"]:
            yield f"--output must be in the folder of the run, got {container['args']}"
        actions = {
            code: rule["action"]
            for rule in job.get("podFailurePolicy", {}).get("rules", [])
            for code in rule.get("onExitCodes", {}).get("values", [])
        }
        is_indexed = job.get("completionMode") == "Indexed"
        if actions != (wanted := {2: "FailJob", 4: "FailIndex" if is_indexed else "FailJob"}):
            yield f"only an error that a retry cannot repair may end the retries: expected {wanted}, got {actions}"
    for job in (m["spec"] for m in _of("Job", manifests) if m["spec"].get("completionMode") == "Indexed"):
        arguments = job["template"]["spec"]["containers"][0]["args"]
        if f"--shard=/{job['completions']}" not in arguments:
            yield f"--shard must name {job['completions']} shards, got {arguments}"
        if not job.get("backoffLimitPerIndex") or job["template"]["spec"]["restartPolicy"] != "Never":
            yield "an Indexed Job must have backoffLimitPerIndex and restartPolicy Never"


def _of(kind: str, manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def _pods(manifests: list[Manifest]) -> list[tuple[str, Manifest]]:
    """Return the name and the specification of each pod of Deployments, Jobs and bare Pods."""
    owners = _of("Deployment", manifests) + _of("Job", manifests)
    pods = [(m["metadata"]["name"], m["spec"]["template"]["spec"]) for m in owners]
    return pods + [(m["metadata"]["name"], m["spec"]) for m in _of("Pod", manifests)]


def _containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def _services(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest, dict[str, str]]]:
    """Yield the pod, the container and the environment variables of each Deployment."""
    maps = {m["metadata"]["name"]: m["data"] for m in _of("ConfigMap", manifests)}
    for deployment in _of("Deployment", manifests):
        pod = deployment["spec"]["template"]["spec"]
        container = pod["containers"][0]
        environment = {each["name"]: each["value"] for each in container.get("env", [])}
        for source in container["envFrom"]:
            environment |= maps[source["configMapRef"]["name"]]
        yield pod, container, environment


def _variables() -> set[str]:
    """Return the names of all environment variables that the service reads."""
    return {parameter.envvar for parameter in _reader([]).params}


def _settings(environment: dict[str, str]) -> Settings | str:
    """Return the settings that the service would read from `environment`, or the error message of the service."""
    read: list[Settings] = []
    result = CliRunner().invoke(_reader(read), [], env=environment)
    return read[0] if read else result.output.strip().splitlines()[-1]


def _reader(read: list[Settings]) -> click.Command:
    return click.command()(service_settings.options(lambda **values: read.append(Settings(**values))))


def _port(address: str) -> int:
    return int(re.sub(r".*:", "", address) or 0)


def _unknown(value: Any, known: dict, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _unknown(each, known, path)
    elif isinstance(value, dict):
        for field, inner in value.items():
            yield from _unknown(inner, known[field], f"{path}.{field}") if field in known else [f"{path}.{field}"]
