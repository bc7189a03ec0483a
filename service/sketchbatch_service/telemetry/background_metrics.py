"""Define the metrics about background threads, tasks and worker processes."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .. import background

SUPERVISOR = "supervisor"  # the value of the label `worker` of the supervisor's own metrics


def background_errors() -> Metric:
    """Return the errors of background components in this process; the samples have no label `worker` yet."""
    text = "Unexpected errors of background threads, tasks and processes; each is in the log and was retried."
    family = CounterMetricFamily("sketchbatch_background_errors", text, labels=["component"])
    for component, count in background.errors().items():
        family.add_metric([component], count)
    return family


def supervisor_metrics(*, wanted: int, serving: int) -> list[Metric]:
    """Return the metrics of the supervisor process: its workers, and the errors of its background components."""
    workers = GaugeMetricFamily("sketchbatch_workers", "Worker processes: wanted and serving.", labels=["state"])
    workers.add_metric(["wanted"], wanted)
    workers.add_metric(["serving"], serving)
    metrics = [workers, background_errors()]
    for metric in metrics:
        metric.samples = [sample._replace(labels={"worker": SUPERVISOR, **sample.labels}) for sample in metric.samples]
    return metrics
