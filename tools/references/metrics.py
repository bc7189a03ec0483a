"""Make the page of the metrics from the metrics of a service that has one model and receives no call."""

import asyncio
import math

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from sketchbatch_service.api.health import HealthServicer
from sketchbatch_service.batching.batcher import Batcher, BatchLimits
from sketchbatch_service.engines.score_kind import ScoreKind
from sketchbatch_service.models.artifact import Artifact
from sketchbatch_service.models.registry import ModelRegistry, ServedModel
from sketchbatch_service.telemetry.background_metrics import supervisor_metrics
from sketchbatch_service.telemetry.metrics import ServiceMetrics
from sketchbatch_service.transport.selection import create_server

from .page import Page, escaped, name

_MANY = 20  # more labels than any metric has


def metrics_page() -> Page:
    """Return the page with every metric; the metrics of the process are those of this system."""
    rows = [_metric(each) for each in sorted(asyncio.run(_metrics()), key=lambda metric: metric.name)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in dict.fromkeys(rows))
    return Page(
        "metrics",
        "Metrics",
        "name, type, labels and meaning of every metric of the service",
        "The service exports these metrics at `--metrics-address`. Every series also has the label `worker`. "
        "[Operations](../operations.md#metrics) describes how to use them.\n\n"
        f"| metric | type | labels | meaning |\n|---|---|---|---|\n{table}",
    )


async def _metrics() -> list[Metric]:
    """Return every metric of a service and of its supervisor. The server is not started."""
    artifact = Artifact(labels=("label",), name="", version="", created="", licence="", metrics={}, digest="")
    batcher = Batcher(lambda bitmaps: bitmaps[:, 0, :1].astype(np.float32), BatchLimits())
    model = ServedModel(
        name="model", version="1", artifact=artifact, provider="", score_kind=ScoreKind.LOGITS, batcher=batcher
    )
    metrics = ServiceMetrics(HealthServicer(()), worker=1)
    metrics.include(ModelRegistry([model]), create_server("aio", (), None, max_receive_s=math.inf), max_connections=1)
    return [*metrics.collect(), *supervisor_metrics(wanted=1, serving=1)]


def _metric(family: Metric) -> tuple[str, str, str, str]:
    """Return the row of a metric. A sample with more values than labels shows the labels that the family has."""
    values = [""] * _MANY
    if isinstance(family, HistogramMetricFamily):
        family.add_metric(values, [("+Inf", 0)], 0)
    elif isinstance(family, CounterMetricFamily | GaugeMetricFamily):
        family.add_metric(values, 0)
    labels = [label for label in family.samples[-1].labels if label != "worker"]
    exported = f"{family.name}_total" if family.type == "counter" else family.name
    return name(exported), family.type, ", ".join(f"`{label}`" for label in labels), escaped(family.documentation)
