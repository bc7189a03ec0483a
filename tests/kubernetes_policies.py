"""Check rendered Kubernetes manifests against policies of this project, in addition to schemas and checkov.

Each policy is a function that takes the manifests of one rendered folder and yields one line per violation. Some
policies compare the manifests with the code of the service: with the settings that the service would read, and with
the service names that its health check knows.
"""

from collections.abc import Iterator
from typing import Any

from kubernetes_manifests import (
    Manifest,
    containers,
    name_of,
    of,
    pods,
    port_of,
    read_settings,
    services,
    unknown_fields,
    variables,
)
from kubernetes_rollouts import budgeted, in_time, scaled, triggered
from sketchbatch_service.api.health import LIVENESS
from sketchbatch_service.api.health import SERVICE as HEALTH
from sketchbatch_service.api.openinference import wire
from sketchbatch_service.app.server import SERVICE

CLASSIFIER = SERVICE.full_name

MODEL_HEALTH = ("", CLASSIFIER, wire.SERVICE)
PROBED = {
    "startupProbe": MODEL_HEALTH,
    "readinessProbe": MODEL_HEALTH,
    "livenessProbe": (LIVENESS,),  # a restart of the process would not repair a failing model
}
"""The gRPC service names that a probe may check with grpc.health.v1, by kind of probe."""

PROBED_WAITING = PROBED | {"startupProbe": (LIVENESS,)}
"""The same names for a service with SKETCHBATCH_WAIT_FOR_MODEL, which may start without a model.

Its startup probe checks liveness, because a startup probe of the models would fail and restart the service.
"""

DNS = {(port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")}
"""Ports and protocols of DNS; a NetworkPolicy that allows one of them must allow all of them."""

DATA = {"Namespace", "PersistentVolumeClaim"}
"""Kinds whose deletion deletes models, drawings or scores."""

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
    policies = (
        restricted,
        sealed,
        mounted,
        configured,
        probed,
        in_time,
        budgeted,
        connected,
        isolated,
        scaled,
        triggered,
        routed,
        sharded,
        filled,
        deletable,
    )
    return [f"{policy.__name__}: {line}" for policy in policies for line in policy(manifests)]


def restricted(manifests: list[Manifest]) -> Iterator[str]:
    """Require Pod Security's level "restricted" and a read-only root file system for each container."""
    for pod in pods(manifests):
        own = pod["spec"].get("securityContext", {})
        for container in containers(pod["spec"]):
            where = f"{name_of(pod)}/{container['name']}"
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
    for name, pod in ((name_of(pod), pod["spec"]) for pod in pods(manifests)):
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(field):
                yield f"{name}: {field} must not be set"
        yield from (f"{name}: volumes must not use hostPath" for each in pod.get("volumes", []) if "hostPath" in each)
        for field in ("automountServiceAccountToken", "enableServiceLinks"):
            if pod.get(field) is not False:
                yield f"{name}: {field} must be false"
        for container in containers(pod):
            asked = container.get("resources", {})
            memory = [asked.get(kind, {}).get("memory") for kind in ("requests", "limits")]
            if None in memory or memory[0] != memory[1] or "cpu" not in asked["requests"]:
                yield f"{name}/{container['name']}: must have a CPU request and equal memory request and limit"


def mounted(manifests: list[Manifest]) -> Iterator[str]:
    """Require that pods mount exactly the volumes that they declare, and mount no volume by subPath."""
    for name, pod in ((name_of(pod), pod["spec"]) for pod in pods(manifests)):
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        mounts = [mount for container in containers(pod) for mount in container.get("volumeMounts", [])]
        if {mount["name"] for mount in mounts} != volumes:
            yield f"{name}: mounts {sorted({mount['name'] for mount in mounts})}, has volumes {sorted(volumes)}"
        yield from (
            f"{name}: subPath must not be used: its file is never updated" for each in mounts if "subPath" in each
        )


def configured(manifests: list[Manifest]) -> Iterator[str]:
    """Require that the service accepts the settings in the ConfigMap.

    The container must declare the ports in these settings. The files in these settings must come from a Secret.
    """
    for deployment, container, environment in services(manifests):
        yield from (f"{key} is not a setting of the service" for key in environment if key not in variables())
        settings = read_settings(environment)
        if isinstance(settings, str):
            yield settings
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        named = {"grpc": settings.address, "probe": settings.probe_address, "metrics": settings.metrics_address}
        if ports != {name: port_of(address) for name, address in named.items()}:
            yield f"containerPorts must be those of the settings {named}, got {ports}"
        volumes = {mount["mountPath"]: mount.get("readOnly") for mount in container.get("volumeMounts", [])}
        yield from (f"{path} must be mounted read-only" for path, is_read_only in volumes.items() if not is_read_only)
        offered = {
            f"/{mount['name']}/{item['path']}"
            for mount in container.get("volumeMounts", [])
            for volume in deployment["spec"]["template"]["spec"]["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            for item in source["secret"]["items"]
        }
        files = (settings.tls_cert, settings.tls_key, settings.tls_client_ca, settings.token_file)
        yield from (f"{file} must come from a Secret" for file in files if file and str(file) not in offered)


def probed(manifests: list[Manifest]) -> Iterator[str]:
    """Require that each probe is a gRPC health check of the probe port, with a name that `PROBED` allows."""
    for _, container, environment in services(manifests):
        port = port_of(environment.get("SKETCHBATCH_PROBE_ADDRESS", ""))
        is_waiting = environment.get("SKETCHBATCH_WAIT_FOR_MODEL") == "true"
        for probe, names in (PROBED_WAITING if is_waiting else PROBED).items():
            asked = container.get(probe, {}).get("grpc", {})
            if asked.get("port") != port:
                yield f"{probe} must check port {port} by gRPC, got {asked.get('port')}"
            if asked.get("service", "") not in names:
                yield f"{probe} must check one of the services {names}, got {asked.get('service', '')!r}"


def connected(manifests: list[Manifest]) -> Iterator[str]:
    """Require that Services, disruption budgets, network policies and spread constraints select our pods.

    Services and network policies must name existing ports, but not the probe port.
    """
    for deployment, container, _ in services(manifests):
        template = deployment["spec"]["template"]
        labels = template["metadata"]["labels"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for service in of("Service", manifests):
            for port in service["spec"]["ports"]:
                if (port["targetPort"], port["port"]) != ("grpc", ports["grpc"]):
                    yield f"Service {name_of(service)} must lead from {ports['grpc']} to grpc, got {port}"
        selectors = [m["spec"]["selector"] for m in of("Service", manifests)]
        selectors += [m["spec"]["selector"]["matchLabels"] for m in of("PodDisruptionBudget", manifests)]
        selectors += [m["spec"]["podSelector"]["matchLabels"] for m in of("NetworkPolicy", manifests)]
        selectors += [s["labelSelector"]["matchLabels"] for s in template["spec"]["topologySpreadConstraints"]]
        yield from (f"{each} selects none of our pods" for each in selectors if not each.items() <= labels.items())
        if len(selectors) != 6:
            yield "there must be two Services, a PodDisruptionBudget, a NetworkPolicy and spread over nodes and zones"
        for policy in of("NetworkPolicy", manifests):
            allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            if allowed != {ports["grpc"], ports["metrics"]}:
                yield f"NetworkPolicy must allow the ports grpc and metrics of {ports}, got {sorted(allowed)}"
            if not all(rule.get("from") for rule in policy["spec"]["ingress"]):
                yield "each ingress rule of a NetworkPolicy must name its sources"


def isolated(manifests: list[Manifest]) -> Iterator[str]:
    """Require that a NetworkPolicy selects a pod of its folder and restricts both directions.

    A direction without rules is denied only if policyTypes names the direction. The rules must allow all ports of DNS
    or none; port 5353 is the port of the DNS pods of OpenShift.
    """
    for policy in of("NetworkPolicy", manifests):
        name, spec = name_of(policy), policy["spec"]
        selector = spec["podSelector"]["matchLabels"].items()
        if not any(selector <= pod["metadata"]["labels"].items() for pod in pods(manifests)):
            yield f"{name}: selects no pod"
        if spec.get("policyTypes") != ["Ingress", "Egress"]:
            yield f"{name}: policyTypes must be ['Ingress', 'Egress'], got {spec.get('policyTypes')}"
        for rule in spec.get("egress", []):
            found = DNS & {(port["port"], port["protocol"]) for port in rule.get("ports", [])}
            if found and found != DNS:
                yield f"{name}: must allow DNS on {sorted(DNS)}, got {sorted(found)}"


def routed(manifests: list[Manifest]) -> Iterator[str]:
    """Require that each field of a GRPCRoute is known, and that its Kubernetes Services and gRPC services exist."""
    ports = {name_of(m): [port["port"] for port in m["spec"]["ports"]] for m in of("Service", manifests)}
    for route in of("GRPCRoute", manifests):
        yield from (f"unknown field {path}" for path in unknown_fields(route, ROUTE, "GRPCRoute"))
        for rule in route["spec"]["rules"]:
            for backend in rule.get("backendRefs", []):
                if backend["port"] not in ports.get(backend["name"], []):
                    yield f"no Service {backend['name']}:{backend['port']}"
            for match in rule.get("matches", []):
                if match["method"]["service"] not in (CLASSIFIER, wire.SERVICE, HEALTH):
                    yield f"no gRPC service {match['method']['service']}"


def sharded(manifests: list[Manifest]) -> Iterator[str]:
    """Require that bulk Jobs have one shard per index, one folder per bulk run, and no useless retries.

    An error that a retry cannot repair has exit code 2 or 4, and must end the retries.
    """
    for manifest in of("Job", manifests):
        job, container = manifest["spec"], manifest["spec"]["template"]["spec"]["containers"][0]
        run = next((each["value"] for each in container["env"] if each["name"] == "RUN"), "")
        if not run or name_of(manifest) != f"sketchbatch-{container['name']}-{run}":
            yield f"the name of the Job must end with the value of RUN, got {name_of(manifest)} and {run!r}"
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
    for job in (m["spec"] for m in of("Job", manifests) if m["spec"].get("completionMode") == "Indexed"):
        arguments = job["template"]["spec"]["containers"][0]["args"]
        if f"--shard=/{job['completions']}" not in arguments:
            yield f"--shard must name {job['completions']} shards, got {arguments}"
        if not job.get("backoffLimitPerIndex") or job["template"]["spec"]["restartPolicy"] != "Never":
            yield "an Indexed Job must have backoffLimitPerIndex and restartPolicy Never"


def filled(manifests: list[Manifest]) -> Iterator[str]:
    """Forbid empty lists and fields without a value.

    The API server does not store an empty list, so each `kubectl apply` would change the object again.
    """
    for manifest in manifests:
        yield from (f"{path} must not be empty" for path in _empty(manifest, f"{manifest['kind']} {name_of(manifest)}"))


def deletable(manifests: list[Manifest]) -> Iterator[str]:
    """Forbid a Namespace or a PersistentVolumeClaim in a folder that has other objects, such as pods.

    `kubectl delete -k` of such a folder would delete the data together with the pods.
    """
    kinds = {manifest["kind"] for manifest in manifests}
    for kind in sorted(kinds & DATA):
        if others := sorted(kinds - DATA - {"ServiceAccount"}):
            yield f"a {kind} must not be in one folder with {others}: `kubectl delete -k` would delete data"


def _empty(value: Any, path: str) -> Iterator[str]:
    """Yield the path of each empty list and of each null in `value`."""
    if value is None or value == []:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _empty(child, f"{path}.{key}")
