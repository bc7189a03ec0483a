"""Test that the dashboard, the alerts and docs/operations.md name existing metrics, and that the alerts are correct."""

import json
import re
import shutil
import subprocess

import pytest
import trustme
import yaml
from fakes import FakeModel
from in_process import serving
from sketchbatch_service.telemetry.background_metrics import supervisor_metrics
from sketchbatch_service.transport.tls import ServerTls, TlsFiles
from sketchbatch_service.transport.tokens import TokenFile

NAME = re.compile(r"\b(?:sketchbatch|process)_[a-z_]+\b")
MONITORING = "deploy/monitoring"


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


def expressions(root) -> list[str]:
    """Return every query of the dashboard and the alerts."""
    panels = json.loads((root / MONITORING / "dashboard.json").read_text())["panels"]
    alerts = (root / MONITORING / "alerts.yaml").read_text()
    return [target["expr"] for panel in panels for target in panel["targets"]] + re.findall("expr: (.+)", alerts)


async def test_every_queried_metric_exists_with_its_labels(root, tmp_path):
    """The dashboard, the alerts and docs/operations.md name only metrics and labels that the service has.

    In addition, docs/operations.md names every metric of the service and every alert.
    """
    known = await series(tmp_path)
    queries = expressions(root)
    assert len(queries) > 30
    assert {name for query in queries for name in NAME.findall(query)} <= known.keys()
    for query in queries:
        labels = {label for name in NAME.findall(query) for label in known[name]} | {"job", "instance", ""}
        for group in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r", *", group)) <= labels, query
    page = (root / "docs" / "operations.md").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    assert set(NAME.findall(page)) <= families | known.keys()
    assert {name for name in families if name.startswith("sketchbatch_")} <= set(NAME.findall(page))
    assert set(re.findall(r"alert: (\w+)", (root / MONITORING / "alerts.yaml").read_text())) <= set(
        re.findall(r"\bSketchbatch\w+", page)
    )


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


@pytest.mark.parametrize("words", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")])
def test_the_alerts_fire_when_they_should(root, words):
    """The alerts pass the syntax check and their unit tests in promtool, the tool that Prometheus provides."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    finished = subprocess.run([promtool, *words], cwd=root / MONITORING, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
