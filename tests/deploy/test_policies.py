"""The manifests of deploy/, as kustomize renders them: strict schemas, checkov, our policies, and what each refuses."""

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
from kubernetes_policies import Manifest, violations

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools" / "k8s" / "bin"
RENDERED = sorted(str(path.parent.relative_to(ROOT)) for path in ROOT.glob("deploy/[ob]*/*/kustomization.yaml"))
"""Overlays, and bulk jobs with their files."""
VERSIONS = ["1.29.0", "1.33.0", "1.37.0"]
"""The oldest that has retries of each index without a feature gate, and the newest of which there are schemas."""


def run(*command: object, text: str | None = None) -> subprocess.CompletedProcess:
    """Runs it, whatever comes of it."""
    return subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="session")
def render() -> Callable[[str], list[Manifest]]:
    """The manifests of a folder, each folder rendered once; a copy, to be changed."""
    kubectl = os.environ.get("KUBECTL") or TOOLS / "kubectl"
    known: dict[str, list[Manifest]] = {}

    def rendered(folder: str) -> list[Manifest]:
        if folder not in known:
            finished = run(kubectl, "kustomize", folder)
            assert finished.returncode == 0, finished.stderr
            assert not finished.stderr, finished.stderr  # what is deprecated
            known[folder] = list(yaml.safe_load_all(finished.stdout))
        return copy.deepcopy(known[folder])

    return rendered


def validated(manifests: list[Manifest], version: str, folder: Path) -> subprocess.CompletedProcess:
    """What Kubernetes' own schemas say, strictly; of the Gateway API's GRPCRoute our policies know the fields."""
    file = folder / "manifests.yaml"
    file.write_text(yaml.safe_dump_all([m for m in manifests if m["kind"] != "GRPCRoute"]))
    return run(TOOLS / "kubernetes-validate", "--strict", "-k", version, file)


def test_there_is_all_that_is_promised():
    """The overlays that docs/operations.md names, and what bulk jobs need."""
    names = {Path(folder).name for folder in RENDERED}
    assert names == {"cpu", "cpu-pvc", "cpu-fetch", "gpu", "gpu-mig", "tls", "gateway", "files", "score", "merge"}


@pytest.mark.parametrize("folder", RENDERED)
def test_no_manifest_breaks_a_policy(render, folder):
    """Ours."""
    assert violations(render(folder)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_fits_the_schema(render, tmp_path, version):
    """Strictly: fields that there are not are errors."""
    finished = validated([manifest for folder in RENDERED for manifest in render(folder)], version, tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_checkov_finds_nothing(render, tmp_path):
    """But for what deploy/checkov.yaml leaves out, with reasons."""
    report = checked([manifest for folder in RENDERED for manifest in render(folder)], tmp_path)
    assert report["summary"]["passed"] > 500
    assert [
        (each["check_id"], each["check_name"], each["resource"]) for each in report["results"]["failed_checks"]
    ] == []


def checked(manifests: list[Manifest], folder: Path) -> dict:
    """Checkov's report."""
    for number, manifest in enumerate(manifests):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(manifest))
    finished = run(TOOLS / "checkov", "--config-file", ROOT / "deploy" / "checkov.yaml", "--directory", folder)
    return json.loads(finished.stdout)


# Each: what is done to a rendering, and the policy that must notice.


def pod(manifests: list[Manifest]) -> Manifest:
    """The first pod's specification."""
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
        "files",
        lambda m: container(m)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    "a job is root": ("restricted", "score", lambda m: pod(m)["securityContext"].update(runAsUser=0)),
    "a capability is added": (
        "restricted",
        "gpu",
        lambda m: container(m)["securityContext"]["capabilities"].update(add=["NET_RAW"]),
    ),
    "no seccomp": ("restricted", "merge", lambda m: pod(m)["securityContext"].pop("seccompProfile")),
    "privileges may grow": (
        "restricted",
        "tls",
        lambda m: container(m)["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    "a token": ("sealed", "cpu", lambda m: pod(m).pop("automountServiceAccountToken")),
    "links": ("sealed", "score", lambda m: pod(m).pop("enableServiceLinks")),
    "the node's network": ("sealed", "cpu", lambda m: pod(m).update(hostNetwork=True)),
    "a folder of the node": (
        "sealed",
        "merge",
        lambda m: pod(m)["volumes"][1].update(hostPath={"path": "/tmp"}),
    ),
    "no memory limit": ("sealed", "merge", lambda m: container(m)["resources"].pop("limits")),
    "a volume is misspelt": ("mounted", "cpu-pvc", lambda m: container(m)["volumeMounts"][0].update(name="modles")),
    "a secret by subPath": ("mounted", "tls", lambda m: container(m)["volumeMounts"][0].update(subPath="tls.crt")),
    "a setting is misspelt": ("configured", "cpu", lambda m: settings(m).update(SKETCHBATCH_DRAIN="30")),
    "a setting has a bad value": ("configured", "cpu", lambda m: settings(m).update(SKETCHBATCH_PROVIDER="gpu")),
    "the port that Kubernetes injects": ("configured", "cpu", lambda m: settings(m).update(SKETCHBATCH_PORT="50051")),
    "another port in the settings": (
        "configured",
        "cpu",
        lambda m: settings(m).update(SKETCHBATCH_ADDRESS="0.0.0.0:8001"),
    ),
    "another port in the pod": ("configured", "cpu", lambda m: container(m)["ports"][2].update(containerPort=9091)),
    "models may be written": ("configured", "cpu-pvc", lambda m: container(m)["volumeMounts"][0].pop("readOnly")),
    "a key that no Secret has": (
        "configured",
        "tls",
        lambda m: settings(m).update(SKETCHBATCH_TLS_KEY="/credentials/key"),
    ),
    "half of TLS": ("configured", "tls", lambda m: settings(m).pop("SKETCHBATCH_TLS_KEY")),
    "a probe's service name is wrong": (
        "probed",
        "cpu",
        lambda m: container(m)["readinessProbe"]["grpc"].update(service="sketchbatch.v1.Classifier"),
    ),
    "liveness asks for the models": (
        "probed",
        "gpu",
        lambda m: container(m)["livenessProbe"]["grpc"].update(service="sketchbatch.v1.ClassifierService"),
    ),
    "readiness asks for the process": (
        "probed",
        "gpu",
        lambda m: container(m)["readinessProbe"]["grpc"].update(service="liveness"),
    ),
    "a probe asks the port behind TLS": (
        "probed",
        "tls",
        lambda m: container(m)["startupProbe"]["grpc"].update(port=50051),
    ),
    "no readiness": ("probed", "cpu", lambda m: container(m).pop("readinessProbe")),
    "killed while it drains": ("in_time", "cpu", lambda m: pod(m).update(terminationGracePeriodSeconds=45)),
    "drains for longer": ("in_time", "cpu", lambda m: settings(m).update(SKETCHBATCH_DRAIN_S="60")),
    "a Service of another port": ("connected", "cpu", lambda m: spec("Service", m)["ports"][0].update(port=8001)),
    "a Service leads to probes": (
        "connected",
        "tls",
        lambda m: spec("Service", m)["ports"][0].update(targetPort="probe"),
    ),
    "a Service selects nobody": ("connected", "cpu", lambda m: spec("Service", m)["selector"].update(tier="front")),
    "probes are let in to": (
        "connected",
        "tls",
        lambda m: spec("NetworkPolicy", m)["ingress"][0]["ports"].append({"port": 50052, "protocol": "TCP"}),
    ),
    "everybody is let in": ("connected", "cpu", lambda m: spec("NetworkPolicy", m)["ingress"][0].pop("from")),
    "no budget": (
        "connected",
        "cpu",
        lambda m: m.remove(first("PodDisruptionBudget", m)),
    ),
    "no spread": ("connected", "cpu", lambda m: pod(m)["topologySpreadConstraints"].clear()),
    "replicas beside an autoscaler": ("scaled", "cpu", lambda m: spec("Deployment", m).update(replicas=2)),
    "all replicas leave at once": ("scaled", "gpu", lambda m: spec("HorizontalPodAutoscaler", m).update(minReplicas=1)),
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
    "a route to nowhere": (
        "routed",
        "gateway",
        lambda m: spec("GRPCRoute", m)["rules"][0]["backendRefs"][0].update(name="sketch"),
    ),
    "a route for nothing": (
        "routed",
        "gateway",
        lambda m: spec("GRPCRoute", m)["rules"][0]["matches"][0]["method"].update(service="Classifier"),
    ),
    "more shares than pods": ("sharded", "score", lambda m: spec("Job", m).update(completions=4)),
    "no retries of an index": ("sharded", "score", lambda m: spec("Job", m).pop("backoffLimitPerIndex")),
    "rejected rows fail a job": (
        "sharded",
        "score",
        lambda m: spec("Job", m)["podFailurePolicy"]["rules"][1]["onExitCodes"].update(values=[2, 3]),
    ),
}


@pytest.mark.parametrize(("policy", "name", "spoil"), WRONG.values(), ids=WRONG)
def test_a_policy_refuses(render, policy, name, spoil):
    """Each manifest but for one thing as it is."""
    manifests = render(next(folder for folder in RENDERED if Path(folder).name == name))
    spoil(manifests)
    found = violations(manifests)
    assert found
    assert {line.partition(":")[0] for line in found} >= {policy}


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("cpu", lambda m: pod(m).update(terminationGracePeriodSecond=60)),
        ("cpu", lambda m: container(m)["readinessProbe"]["grpc"].update(sevice="")),
        ("tls", lambda m: pod(m)["volumes"][0]["projected"].update(source=[])),
        ("score", lambda m: spec("Job", m).update(backoffLimitPerindex=3)),
        ("gpu", lambda m: spec("HorizontalPodAutoscaler", m).update(minReplica=3)),
        ("cpu", lambda m: spec("PodDisruptionBudget", m).update(maxUnavailable=[1])),
    ],
)
def test_a_misspelt_field_fits_no_schema(render, tmp_path, name, spoil):
    """Nor does a value of another type."""
    manifests = render(next(folder for folder in RENDERED if Path(folder).name == name))
    spoil(manifests)
    assert validated(manifests, VERSIONS[-1], tmp_path).returncode != 0


def test_checkov_finds_a_container_that_may_gain_privileges(render, tmp_path):
    """So it looks at what we give it."""
    manifests = render("deploy/overlays/cpu")
    container(manifests)["securityContext"].pop("allowPrivilegeEscalation")
    assert "CKV_K8S_20" in {each["check_id"] for each in checked(manifests, tmp_path)["results"]["failed_checks"]}


def test_a_running_service_answers_every_probe(render, start_service, tiny_model):
    """On its port for probes, by the names in the manifest."""
    service = start_service(tiny_model, "--probe-address", "127.0.0.1:0")
    with grpc.insecure_channel(service.probe_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            name = container(render("deploy/overlays/cpu"))[probe]["grpc"]["service"]
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_bulk_jobs_reach_the_service_and_each_other_s_files(render):
    """Across renderings: the address, the label that lets them in, the names of the shares."""
    base, score, merge = map(render, ["deploy/overlays/cpu", "deploy/bulk/score", "deploy/bulk/merge"])
    addresses = {
        f"dns:///{m['metadata']['name']}:{m['spec']['ports'][0]['port']}" for m in base if m["kind"] == "Service"
    }
    assert container(score)["env"][0]["value"] in addresses
    let_in = spec("NetworkPolicy", base)["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items()
    assert let_in <= spec("Job", score)["template"]["metadata"]["labels"].items()
    assert pod(score)["serviceAccountName"] in {m["metadata"]["name"] for m in base if m["kind"] == "ServiceAccount"}
    assert f"of-{spec('Job', score)['completions']:05}.parquet" in container(merge)["command"][2]
