"""Test that dashboard, alerts and pages for operators name existing metrics, and that alerts and runbooks fit."""

import json
import re
import shutil
import subprocess
from collections import defaultdict

import pytest
import trustme
import yaml
from fakes import FakeModel
from in_process import serving
from sketchbatch.openinference.v2 import open_inference_pb2 as inference_pb2
from sketchbatch.v1 import classifier_pb2
from sketchbatch_service.batching.statistics import BOUNDS_S
from sketchbatch_service.telemetry.background_metrics import supervisor_metrics
from sketchbatch_service.transport.tls import ServerTls, TlsFiles
from sketchbatch_service.transport.tokens import TokenFile

NAME = re.compile(r"\b(?:sketchbatch|process)_[a-z_]+\b")
RECORDED = re.compile(r"\bsketchbatch:[\w:]+")
MONITORING = "deploy/monitoring"
RULE_TESTS = ("alerts_test.yaml", "alerts_days_test.yaml")


async def series(folder) -> dict[str, set[str]]:
    """Return the labels of each metric of a service with TLS and tokens, after a successful and a rejected call."""
    ca = trustme.CA()
    issued = ca.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    (folder / "tokens").write_text("token-0123456789")
    tls = ServerTls(TlsFiles(cert=folder / "server.pem", key=folder / "server.pem"))
    async with serving(bear=FakeModel()) as service:
        await service.classify(1)
        await service.rejection()
        service.metrics.include_credentials(tls, TokenFile(folder / "tokens", frozenset()))
        found = {}
        for metric in [*service.metrics.collect(), *supervisor_metrics(wanted=2, serving=1)]:
            for sample in metric.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def rules(root) -> list[dict]:
    """Return every alert rule and recording rule."""
    groups = yaml.safe_load((root / MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts(root) -> dict[str, dict]:
    """Return every alert rule by its name."""
    return {rule["alert"]: rule for rule in rules(root) if "alert" in rule}


def expressions(root) -> list[str]:
    """Return every query of the dashboard and the rules."""
    panels = json.loads((root / MONITORING / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]] + [rule["expr"] for rule in rules(root)]


async def test_every_queried_metric_exists_with_its_labels(root, tmp_path):
    """The dashboard, the rules and the pages for operators name only metrics and labels that the service has.

    In addition, docs/operations.md names every metric of the service, and alerts use only recorded series that exist.
    """
    known = await series(tmp_path)
    queries = expressions(root)
    assert len(queries) > 30
    assert {name for query in queries for name in NAME.findall(query)} <= known.keys()
    for query in queries:
        labels = {label for name in NAME.findall(query) for label in known[name]} | {"job", "instance", ""}
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r", *", group)) <= labels, query
        assert set(re.findall(r"[{,] *(\w+)!?=", query)) <= labels, query
    recorded = {rule["record"] for rule in rules(root) if "record" in rule}
    assert {name for query in queries for name in RECORDED.findall(query)} == recorded
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    pages = {name: (root / "docs" / f"{name}.md").read_text() for name in ("operations", "runbooks", "slo", "capacity")}
    for page in pages.values():
        assert set(NAME.findall(page)) <= families | known.keys()
    assert {name for name in families if name.startswith("sketchbatch_")} <= set(NAME.findall(pages["operations"]))


def test_every_alert_has_a_runbook_and_every_runbook_an_alert(root):
    """Each alert leads to its section of docs/runbooks.md, which has the same four parts for all alerts, in order."""
    page = (root / "docs" / "runbooks.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert list(sections) == list(alerts(root))
    assert len(sections) == page.count("\n## ")
    for name, section in sections.items():
        parts = re.findall(r"^\*\*(Meaning|Confirm, fix|Confirm|Fix|Escalate)\b", section, re.MULTILINE)
        assert parts in (["Meaning", "Confirm", "Fix", "Escalate"], ["Meaning", "Confirm, fix", "Escalate"]), name
        address = alerts(root)[name]["annotations"]["runbook_url"]
        assert address == f"https://github.com/sketchbatch/sketchbatch/blob/main/docs/runbooks.md#{name.lower()}"


def test_every_alert_is_tested_to_fire_and_to_stay_silent(root):
    """For each alert, the unit tests of the rules have a case in which it fires, and one in which it does not."""
    files = [yaml.safe_load((root / MONITORING / name).read_text()) for name in RULE_TESTS]
    cases = [case for file in files for test in file["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts(root).keys()
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts(root).keys()


def test_the_objectives_use_existing_methods_statuses_and_bounds(root):
    """The recording rules of the objectives count each status as failed, good or the caller's error.

    Their methods are those of the service, and their threshold is a bound of the histogram.
    """
    queries = "\n".join(rule["expr"] for rule in rules(root) if "record" in rule)

    def values(label: str) -> set[str]:
        return {value for text in re.findall(rf'\b{label}=~?"([^"]+)"', queries) for value in text.split("|")}

    services = {"sketchbatch.v1.ClassifierService": classifier_pb2, "inference.GRPCInferenceService": inference_pb2}
    methods = {
        f"{service}/{method}"
        for service, module in services.items()
        for method in module.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods_by_name
    }
    assert values("method") - {"none"} <= methods
    page, guide = ((root / "docs" / name).read_text() for name in ("slo.md", "grpc-api.md"))
    (uncounted,) = re.findall(r"^\| not counted \| ([A-Z_, ]+) \|", page, re.MULTILINE)
    returned = re.findall(r"^\| ([A-Z_]+) \|", guide, re.MULTILINE)
    assert sorted([*values("code"), *uncounted.split(", ")]) == sorted({*returned, "OK"})
    assert values("le") <= set(map(str, BOUNDS_S))


async def test_the_autoscaler_uses_an_existing_gauge_of_each_pod(root, tmp_path):
    """The autoscaler's metric exists: prometheus-adapter makes it from a gauge that the service has.

    The labels by which prometheus-adapter finds the pods are labels that the scrape configuration sets.
    """
    scaler = yaml.safe_load((root / "deploy/base/horizontalpodautoscaler.yaml").read_text())["spec"]
    adapter = yaml.safe_load((root / MONITORING / "kubernetes/adapter.yaml").read_text())["rules"]
    assert [each["pods"]["metric"]["name"] for each in scaler["metrics"]] == [adapter[0]["name"]["as"]]
    assert adapter[0]["seriesQuery"].partition("{")[0] in await series(tmp_path)
    scrape = yaml.safe_load((root / MONITORING / "kubernetes/scrape.yaml").read_text())["scrape_configs"][0]
    labels = {rule.get("target_label") for rule in scrape["relabel_configs"]}
    assert set(adapter[0]["resources"]["overrides"]) <= labels
    assert scrape["job_name"] == "sketchbatch"


def test_the_measured_values_of_the_capacity_page_stand_in_the_results(root):
    """Each row of measured values is the median of a results file that docs/capacity.md names."""
    page = (root / "docs" / "capacity.md").read_text()
    medians = defaultdict(list)
    for name in set(re.findall(r"benchmarks/results/([\w-]+\.json)", page)):
        for each in json.loads((root / "benchmarks" / "results" / name).read_text())["measured"]:
            if each["model"] == "shipped":
                medians[each["workload"], each["contestant"]].append(each["medians"])
    contestants = {"plain stubs": "ours", "`Client`": "ours-client", "`AsyncClient`": "ours-async-client"}
    rows = re.findall(r"^\| ([\d,]+) x (\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for rows_per_request, in_flight, caller, *cells in rows:
        expected = [
            [float(f"{found[key]:.4g}") for key in ("rows_per_s", "p50_ms", "p99_ms")]
            + [float(f"{1000 * found['server_cpu_s_per_1000_rows']:.3g}")]
            for found in medians[f"{rows_per_request.replace(',', '')}x{in_flight}", contestants[caller]]
        ]
        assert [float(cell.replace(",", "")) for cell in cells] in expected


@pytest.mark.timeout(120)  # 5 s on an idle machine
@pytest.mark.parametrize("words", [("check", "rules", "alerts.yaml"), ("test", "rules", *RULE_TESTS)])
def test_the_alerts_fire_when_they_should(root, words):
    """The alerts pass the syntax check and their unit tests in promtool, the tool that Prometheus provides."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    finished = subprocess.run([promtool, *words], cwd=root / MONITORING, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
