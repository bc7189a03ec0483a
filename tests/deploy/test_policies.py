"""Check the rendered manifests of deploy/ with strict schemas, with checkov and with our own policies.

The module also tests these three checks: each must report a manifest that contains an error.
"""

import copy
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kubernetes_manifests import Manifest, name_of, of, pods
from kubernetes_policies import violations

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools" / "k8s" / "bin"
KUBECTL = os.environ.get("KUBECTL") or TOOLS / "kubectl"
RENDERED = sorted(
    str(path.parent.relative_to(ROOT))
    for path in ROOT.glob("deploy/**/kustomization.yaml")
    if "kind: Kustomization" in path.read_text() and path.parent.name != "base"
)
"""Folders that a user applies: all folders of deploy/ except the base and the components."""
VERSIONS = ["1.29.0", "1.33.0", "1.37.0"]
"""Versions of Kubernetes whose schemas the manifests must fit.

The oldest version is the first in which backoffLimitPerIndex is enabled by default. The newest version is the last one
with published schemas.
"""


def run(*command: object, text: str | None = None) -> subprocess.CompletedProcess:
    """Run a command, and return the finished process even if the command failed."""
    return subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="session")
def render() -> Callable[[str], list[Manifest]]:
    """Return a function that renders the manifests of a folder.

    Each folder is rendered only once, and each call returns a new copy of its manifests.
    """
    known: dict[str, list[Manifest]] = {}

    def rendered(folder: str) -> list[Manifest]:
        if folder not in known:
            finished = run(KUBECTL, "kustomize", folder)
            assert finished.returncode == 0, finished.stderr
            assert not finished.stderr, finished.stderr  # kustomize writes deprecation warnings to stderr
            known[folder] = list(yaml.safe_load_all(finished.stdout))
        return copy.deepcopy(known[folder])

    return rendered


def validated(manifests: list[Manifest], version: str, folder: Path) -> subprocess.CompletedProcess:
    """Validate manifests strictly against the schemas of a Kubernetes version; return the finished process.

    These schemas do not contain GRPCRoute and ScaledObject, which our policies `routed` and `triggered` check instead.
    """
    file = folder / "manifests.yaml"
    file.write_text(yaml.safe_dump_all([m for m in manifests if m["kind"] not in ("GRPCRoute", "ScaledObject")]))
    return run(TOOLS / "kubernetes-validate", "--strict", "-k", version, file)


def test_every_documented_folder_is_rendered():
    """The tests render exactly the folders of namespace, models, overlays and bulk jobs of docs/operations.md."""
    overlays = ("cpu", "cpu-pvc", "cpu-fetch", "gpu", "gpu-mig", "tls", "gateway", "keda")
    others = ("namespace", "models/claim", "models/files", "bulk/claims", "bulk/files", "bulk/score", "bulk/merge")
    assert {folder.removeprefix("deploy/") for folder in RENDERED} == {
        *others,
        *(f"overlays/{name}" for name in overlays),
    }


@pytest.mark.parametrize("folder", RENDERED)
def test_no_manifest_breaks_a_policy(render, folder):
    """The manifests of each folder fulfil every policy of kubernetes_policies.py."""
    assert violations(render(folder)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_fits_the_schema(render, tmp_path, version):
    """Every manifest fits the schema in strict mode, in which an unknown field is an error."""
    finished = validated([manifest for folder in RENDERED for manifest in render(folder)], version, tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_checkov_finds_nothing(render, tmp_path):
    """Checkov finds no problem, apart from the checks that deploy/checkov.yaml skips with reasons."""
    report = checked([manifest for folder in RENDERED for manifest in render(folder)], tmp_path)
    assert report["summary"]["passed"] > 500
    assert [
        (each["check_id"], each["check_name"], each["resource"]) for each in report["results"]["failed_checks"]
    ] == []


def checked(manifests: list[Manifest], folder: Path) -> dict:
    """Return checkov's report on the manifests."""
    for number, manifest in enumerate(manifests):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(manifest))
    finished = run(TOOLS / "checkov", "--config-file", ROOT / "deploy" / "checkov.yaml", "--directory", folder)
    return json.loads(finished.stdout)


# Each case of `WRONG` has three values: the policy that must report a violation, the folder to render, and the change
# of the rendered manifests that causes the violation.


def pod(manifests: list[Manifest]) -> Manifest:
    """Return the specification of the first pod."""
    owner = next(m for m in manifests if m["kind"] in ("Deployment", "Job", "Pod"))["spec"]
    return owner["template"]["spec"] if "template" in owner else owner


def container(manifests: list[Manifest]) -> Manifest:
    return pod(manifests)["containers"][0]


def first(kind: str, manifests: list[Manifest]) -> Manifest:
    return next(m for m in manifests if m["kind"] == kind)


def spec(kind: str, manifests: list[Manifest]) -> Manifest:
    return first(kind, manifests)["spec"]


def settings(manifests: list[Manifest]) -> dict:
    return next(m for m in manifests if m["kind"] == "ConfigMap" and "SKETCHBATCH_MODEL" in m["data"])["data"]


WRONG = {
    "a NetworkPolicy has an empty list": (
        "filled",
        "cpu",
        lambda m: spec("NetworkPolicy", m).update(egress=[]),
    ),
    "a container has an empty list": ("filled", "merge", lambda m: container(m).update(env=[])),
    "a list inside a list is empty": (
        "filled",
        "gateway",
        lambda m: spec("GRPCRoute", m)["rules"][0].update(matches=[]),
    ),
    "a field has no value": ("filled", "score", lambda m: spec("NetworkPolicy", m).update(ingress=None)),
    "to delete an overlay deletes the namespace": (
        "deletable",
        "cpu",
        lambda m: m.append({"kind": "Namespace", "metadata": {"name": "sketchbatch"}}),
    ),
    "to delete a pod deletes the scores": (
        "deletable",
        "bulk/files",
        lambda m: m.append({"kind": "PersistentVolumeClaim", "metadata": {"name": "sketchbatch-scores"}}),
    ),
    "runAsNonRoot is removed": ("restricted", "cpu", lambda m: pod(m)["securityContext"].pop("runAsNonRoot")),
    "runAsNonRoot is taken back": (
        "restricted",
        "cpu",
        lambda m: container(m)["securityContext"].update(runAsNonRoot=False),
    ),
    "an init container may write its root": (
        "restricted",
        "cpu-fetch",
        lambda m: pod(m)["initContainers"][0]["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    "privileged": ("restricted", "cpu", lambda m: container(m)["securityContext"].update(privileged=True)),
    "a bare pod writes its root": (
        "restricted",
        "bulk/files",
        lambda m: container(m)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    "a job is root": ("restricted", "score", lambda m: pod(m)["securityContext"].update(runAsUser=0)),
    "a capability is added to a container": (
        "restricted",
        "gpu",
        lambda m: container(m)["securityContext"]["capabilities"].update(add=["NET_RAW"]),
    ),
    "there is no seccomp profile": ("restricted", "merge", lambda m: pod(m)["securityContext"].pop("seccompProfile")),
    "privilege escalation is allowed": (
        "restricted",
        "tls",
        lambda m: container(m)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    "a token is mounted": ("sealed", "cpu", lambda m: pod(m).pop("automountServiceAccountToken")),
    "service links are enabled": ("sealed", "score", lambda m: pod(m).pop("enableServiceLinks")),
    "a pod uses the node's network": ("sealed", "cpu", lambda m: pod(m).update(hostNetwork=True)),
    "a pod mounts a folder of the node": (
        "sealed",
        "merge",
        lambda m: pod(m)["volumes"][1].update(hostPath={"path": "/tmp"}),
    ),
    "there is no memory limit": ("sealed", "merge", lambda m: container(m)["resources"].pop("limits")),
    "a volume is misspelt": ("mounted", "cpu-pvc", lambda m: container(m)["volumeMounts"][0].update(name="model")),
    "a secret is mounted by subPath": (
        "mounted",
        "tls",
        lambda m: container(m)["volumeMounts"][0].update(subPath="tls.crt"),
    ),
    "a setting is misspelt": ("configured", "cpu", lambda m: settings(m).update(SKETCHBATCH_DRAIN="30")),
    "a setting has a bad value": ("configured", "cpu", lambda m: settings(m).update(SKETCHBATCH_PROVIDER="gpu")),
    "a variable that Kubernetes injects is a setting": (
        "configured",
        "cpu",
        lambda m: settings(m).update(SKETCHBATCH_PORT="50051"),
    ),
    "the settings name another port": (
        "configured",
        "cpu",
        lambda m: settings(m).update(SKETCHBATCH_ADDRESS="0.0.0.0:8001"),
    ),
    "the pod names another port": ("configured", "cpu", lambda m: container(m)["ports"][2].update(containerPort=9091)),
    "the models are mounted for writing": (
        "configured",
        "cpu-pvc",
        lambda m: container(m)["volumeMounts"][0].pop("readOnly"),
    ),
    "a TLS key is in no Secret": (
        "configured",
        "tls",
        lambda m: settings(m).update(SKETCHBATCH_TLS_KEY="/credentials/key"),
    ),
    "a TLS certificate has no key": ("configured", "tls", lambda m: settings(m).pop("SKETCHBATCH_TLS_KEY")),
    "a probe's service name is misspelt": (
        "probed",
        "cpu",
        lambda m: container(m)["readinessProbe"]["grpc"].update(service="sketchbatch.v1.Classifier"),
    ),
    "liveness checks the models": (
        "probed",
        "gpu",
        lambda m: container(m)["livenessProbe"]["grpc"].update(service="sketchbatch.v1.ClassifierService"),
    ),
    "readiness checks the process only": (
        "probed",
        "gpu",
        lambda m: container(m)["readinessProbe"]["grpc"].update(service="liveness"),
    ),
    "a probe checks the port behind TLS": (
        "probed",
        "tls",
        lambda m: container(m)["startupProbe"]["grpc"].update(port=50051),
    ),
    "there is no readiness probe": ("probed", "cpu", lambda m: container(m).pop("readinessProbe")),
    "the startup probe's service name is misspelt": (
        "probed",
        "tls",
        lambda m: container(m)["startupProbe"]["grpc"].update(service="sketchbatch.v1.ClassifierServices"),
    ),
    "the liveness probe's service name is misspelt": (
        "probed",
        "cpu",
        lambda m: container(m)["livenessProbe"]["grpc"].update(service="alive"),
    ),
    "a service that waits for its first model would be restarted": (
        "probed",
        "cpu-pvc",
        lambda m: container(m)["startupProbe"]["grpc"].update(service="sketchbatch.v1.ClassifierService"),
    ),
    "readiness ignores that there is no model": (
        "probed",
        "cpu-pvc",
        lambda m: container(m)["readinessProbe"]["grpc"].update(service="liveness"),
    ),
    "the startup probe checks the process only": (
        "probed",
        "cpu",
        lambda m: container(m)["startupProbe"]["grpc"].update(service="liveness"),
    ),
    "the grace period ends during the drain": (
        "in_time",
        "cpu",
        lambda m: pod(m).update(terminationGracePeriodSeconds=95),
    ),
    "a slow start ends a rollout": (
        "in_time",
        "cpu",
        lambda m: container(m)["startupProbe"].update(failureThreshold=300),
    ),
    "the wait for the GPU of an old pod ends a rollout": (
        "in_time",
        "gpu",
        lambda m: spec("Deployment", m).update(progressDeadlineSeconds=400),
    ),
    "old pods stop before clients know the new pods": (
        "budgeted",
        "cpu",
        lambda m: spec("Deployment", m).update(minReadySeconds=34),
    ),
    "minReadySeconds is missing": ("budgeted", "gpu", lambda m: spec("Deployment", m).pop("minReadySeconds")),
    "the lame duck ends before clients know the other pods": (
        "budgeted",
        "cpu",
        lambda m: settings(m).update(SKETCHBATCH_LAME_DUCK_S="57"),
    ),
    "connections outlive the lame duck": (
        "budgeted",
        "tls",
        lambda m: settings(m).update(SKETCHBATCH_MAX_CONNECTION_AGE_S="30"),
    ),
    "connections do not age": (
        "budgeted",
        "keda",
        lambda m: settings(m).pop("SKETCHBATCH_MAX_CONNECTION_AGE_S"),
    ),
    "the drain takes longer than the grace period": (
        "in_time",
        "cpu",
        lambda m: settings(m).update(SKETCHBATCH_DRAIN_S="60"),
    ),
    "a Service has another port": ("connected", "cpu", lambda m: spec("Service", m)["ports"][0].update(port=8001)),
    "a Service leads to the probe port": (
        "connected",
        "tls",
        lambda m: spec("Service", m)["ports"][0].update(targetPort="probe"),
    ),
    "a Service selects no pod": ("connected", "cpu", lambda m: spec("Service", m)["selector"].update(tier="front")),
    "a NetworkPolicy allows the probe port": (
        "connected",
        "tls",
        lambda m: spec("NetworkPolicy", m)["ingress"][0]["ports"].append({"port": 50052, "protocol": "TCP"}),
    ),
    "a NetworkPolicy allows every source": (
        "connected",
        "cpu",
        lambda m: spec("NetworkPolicy", m)["ingress"][0].pop("from"),
    ),
    "there is no disruption budget": (
        "connected",
        "cpu",
        lambda m: m.remove(first("PodDisruptionBudget", m)),
    ),
    "replicas are not spread": ("connected", "cpu", lambda m: pod(m)["topologySpreadConstraints"].clear()),
    "a NetworkPolicy selects no pod": (
        "isolated",
        "models/files",
        lambda m: spec("NetworkPolicy", m)["podSelector"]["matchLabels"].update(tier="front"),
    ),
    "a NetworkPolicy does not name a direction": (
        "isolated",
        "score",
        lambda m: spec("NetworkPolicy", m)["policyTypes"].remove("Ingress"),
    ),
    "DNS is not allowed on OpenShift's port": (
        "isolated",
        "score",
        lambda m: spec("NetworkPolicy", m)["egress"][0]["ports"].pop(),
    ),
    "DNS over TCP is not allowed": (
        "isolated",
        "cpu-fetch",
        lambda m: spec("NetworkPolicy", m)["egress"][0]["ports"].remove({"port": 53, "protocol": "TCP"}),
    ),
    "a Deployment starts with one pod": ("scaled", "cpu", lambda m: spec("Deployment", m).pop("replicas")),
    "an apply goes through one pod": (
        "scaled",
        "cpu",
        lambda m: (
            spec("Deployment", m).update(replicas=1),
            spec("HorizontalPodAutoscaler", m).update(minReplicas=1),
            spec("PodDisruptionBudget", m).update(maxUnavailable=0),
        ),
    ),
    "an apply sets fewer replicas than the autoscaler": (
        "scaled",
        "gpu",
        lambda m: spec("HorizontalPodAutoscaler", m).update(minReplicas=3),
    ),
    "KEDA may remove all replicas": ("scaled", "keda", lambda m: spec("ScaledObject", m).pop("minReplicaCount")),
    "there are two autoscalers": (
        "scaled",
        "keda",
        lambda m: m.append(
            {
                "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "sketchbatch"},
                "spec": {"scaleTargetRef": {"name": "sketchbatch"}, "minReplicas": 2},
            }
        ),
    ),
    "a field of a ScaledObject is misspelt": (
        "triggered",
        "keda",
        lambda m: spec("ScaledObject", m).update(minReplicas=2),
    ),
    "a trigger's threshold is a number": (
        "triggered",
        "keda",
        lambda m: spec("ScaledObject", m)["triggers"][0]["metadata"].update(threshold=4096),
    ),
    "all replicas may stop at once": (
        "scaled",
        "gpu",
        lambda m: spec("PodDisruptionBudget", m).update(maxUnavailable=2),
    ),
    "the autoscaler's target is misspelt": (
        "scaled",
        "cpu",
        lambda m: spec("HorizontalPodAutoscaler", m)["scaleTargetRef"].update(name="sketch"),
    ),
    "a route's field is misspelt": (
        "routed",
        "gateway",
        lambda m: spec("GRPCRoute", m)["rules"][0].update(backendRef=[]),
    ),
    "a route leads to an unknown Service": (
        "routed",
        "gateway",
        lambda m: spec("GRPCRoute", m)["rules"][0]["backendRefs"][0].update(name="sketch"),
    ),
    "a route matches an unknown gRPC service": (
        "routed",
        "gateway",
        lambda m: spec("GRPCRoute", m)["rules"][0]["matches"][0]["method"].update(service="Classifier"),
    ),
    "a job has fewer shards than pods": ("sharded", "score", lambda m: spec("Job", m).update(completions=4)),
    "an index is not retried": ("sharded", "score", lambda m: spec("Job", m).pop("backoffLimitPerIndex")),
    "rejected rows fail a job": (
        "sharded",
        "score",
        lambda m: spec("Job", m)["podFailurePolicy"]["rules"][1]["onExitCodes"].update(values=[2, 3]),
    ),
    "a damaged file is read ten times": (
        "sharded",
        "score",
        lambda m: spec("Job", m)["podFailurePolicy"]["rules"].pop(),
    ),
    "a damaged file ends all shards": (
        "sharded",
        "score",
        lambda m: spec("Job", m)["podFailurePolicy"]["rules"][2].update(action="FailJob"),
    ),
    "shards of different jobs are merged again": ("sharded", "merge", lambda m: spec("Job", m).pop("podFailurePolicy")),
    "two runs write the same files": (
        "sharded",
        "merge",
        lambda m: container(m)["args"].__setitem__(0, "--output=/scores/labels.parquet"),
    ),
    "a Job has the name of another run": (
        "sharded",
        "score",
        lambda m: first("Job", m)["metadata"].update(name="sketchbatch-score-first"),
    ),
}


def folder_of(name: str) -> str:
    """Return the one rendered folder whose path ends in `name`."""
    (folder,) = (folder for folder in RENDERED if folder.endswith(f"/{name}"))
    return folder


@pytest.mark.parametrize(("policy", "name", "spoil"), WRONG.values(), ids=WRONG)
def test_a_policy_reports_a_violation(render, policy, name, spoil):
    """If a case of `WRONG` changes a correct manifest, the policy that the case names reports a violation."""
    manifests = render(folder_of(name))
    spoil(manifests)
    found = violations(manifests)
    assert found
    assert {line.partition(":")[0] for line in found} >= {policy}


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("cpu", lambda m: pod(m).update(terminationGracePeriodSecond=60)),
        ("cpu", lambda m: container(m)["readinessProbe"]["grpc"].update(services="")),
        ("tls", lambda m: pod(m)["volumes"][0]["projected"].update(source=[])),
        ("score", lambda m: spec("Job", m).update(backoffLimitPerindex=3)),
        ("gpu", lambda m: spec("HorizontalPodAutoscaler", m).update(minReplica=3)),
        ("cpu", lambda m: spec("PodDisruptionBudget", m).update(maxUnavailable=[1])),
    ],
)
def test_a_misspelt_field_breaks_the_schema(render, tmp_path, name, spoil):
    """A misspelt field or a value of another type breaks the schema."""
    manifests = render(folder_of(name))
    spoil(manifests)
    assert validated(manifests, VERSIONS[-1], tmp_path).returncode != 0


def test_checkov_finds_a_container_that_may_gain_privileges(render, tmp_path):
    """Checkov reports a container that may gain privileges; this shows that checkov reads the given manifests."""
    manifests = render("deploy/overlays/cpu")
    container(manifests)["securityContext"].pop("allowPrivilegeEscalation")
    assert "CKV_K8S_20" in {each["check_id"] for each in checked(manifests, tmp_path)["results"]["failed_checks"]}


def test_a_running_service_answers_every_probe(render, start_service, tiny_model):
    """A running service responds SERVING to each probe of the manifest, on its probe port."""
    service = start_service(tiny_model, "--probe-address", "127.0.0.1:0")
    with grpc.insecure_channel(service.probe_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            name = container(render("deploy/overlays/cpu"))[probe]["grpc"]["service"]
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_bulk_jobs_reach_the_service_and_each_other_s_files(render):
    """The manifests of the bulk jobs fit those of the service.

    The job `score` uses the address of a Service and has a label that the NetworkPolicy allows. The job `merge` reads
    files with the names under which the job `score` writes its shards.
    """
    base, score, merge = map(render, ["deploy/overlays/cpu", "deploy/bulk/score", "deploy/bulk/merge"])
    addresses = {f"dns:///{name_of(m)}:{m['spec']['ports'][0]['port']}" for m in of("Service", base)}
    values = {each["name"]: each["value"] for each in container(score)["env"]}
    assert values["SKETCHBATCH_SERVER"] in addresses
    allowed = spec("NetworkPolicy", base)["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items()
    assert allowed <= spec("Job", score)["template"]["metadata"]["labels"].items()
    assert f"of-{spec('Job', score)['completions']:05}.parquet" in container(merge)["command"][2]


def test_the_accounts_and_volumes_of_all_pods_exist(render):
    """The service accounts and volume claims that the pods use are exactly those that the manifests define."""
    every = [manifest for folder in RENDERED for manifest in render(folder)]
    accounts = {name_of(m) for m in of("ServiceAccount", every)}
    claims = {name_of(m) for m in of("PersistentVolumeClaim", every)}
    used = [each["spec"] for each in pods(every)]
    assert {each["serviceAccountName"] for each in used} == accounts
    volumes = [volume for each in used for volume in each.get("volumes", [])]
    assert {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v} == claims


def test_a_pod_may_write_what_the_service_reads(render):
    """The pod `model-files` mounts the volume of the models for writing, as the user and group of the service."""
    files, service = pod(render("deploy/models/files")), pod(render("deploy/overlays/cpu-pvc"))
    assert files["securityContext"] == service["securityContext"]
    mounts = {each["name"]: each for each in files["containers"][0]["volumeMounts"]}
    (volume,) = files["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "sketchbatch-models"}
    assert not mounts[volume["name"]].get("readOnly")
    assert volume["persistentVolumeClaim"]["claimName"] in str(service["volumes"])


def test_the_number_of_replicas_can_be_replaced_in_one_line(render):
    """Exactly one line of each rendered overlay is `  replicas: 2`; a command of docs/operations.md replaces it."""
    for folder in (folder for folder in RENDERED if "/overlays/" in folder):
        lines = run(KUBECTL, "kustomize", folder).stdout.splitlines()
        assert lines.count("  replicas: 2") == 1, folder


def test_keda_scales_like_the_autoscaler_of_the_base(render):
    """The ScaledObject has the limits, the behaviour, the metric and the target of the autoscaler that it replaces."""
    scaler = spec("HorizontalPodAutoscaler", render("deploy/overlays/cpu"))
    keda = spec("ScaledObject", render("deploy/overlays/keda"))
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (scaler["minReplicas"], scaler["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == scaler["behavior"]
    (metric,), (trigger,) = scaler["metrics"], keda["triggers"]
    assert trigger["metricType"] == metric["pods"]["target"]["type"]
    assert trigger["metadata"]["threshold"] == metric["pods"]["target"]["averageValue"]
    adapter = yaml.safe_load((ROOT / "deploy/monitoring/kubernetes/adapter.yaml").read_text())["rules"][0]
    query = adapter["metricsQuery"].removesuffix(" by (<<.GroupBy>>)")
    query = query.replace("<<.Series>>", metric["pods"]["metric"]["name"])
    assert trigger["metadata"]["query"] == query.replace("<<.LabelMatchers>>", 'namespace="sketchbatch"')
