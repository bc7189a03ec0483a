"""Define the metrics, and compute them from the counts of the service at each scrape.

Requests never update prometheus_client, because each update costs time (docs/decisions/0018).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from ..api.health import HealthServicer
from ..api.request_log import rejections
from ..batching.statistics import BOUNDS_S, Counts, Histogram
from ..models.registry import ModelRegistry, ServedModel
from ..transport.interface import Server
from ..transport.tls import ServerTls
from ..transport.tokens import TokenFile
from .background_metrics import background_errors
from .credential_metrics import credential_metrics

_BOUNDS_ROWS = tuple(1 << n for n in range(15))
_LABELS = ["model", "version"]


class _Snapshot(NamedTuple):
    """A model and a copy of its counts."""

    model: ServedModel
    counts: Counts

    @property
    def labels(self) -> list[str]:
        return [self.model.name, self.model.version]


_Read = Callable[[_Snapshot], float]

_COUNTERS: dict[str, tuple[str, _Read]] = {
    "sketchbatch_rows": ("Rows of answered requests.", lambda now: now.counts.rows),
    "sketchbatch_unanswered_requests": (
        "Accepted requests without scores: deadline passed, cancelled by the client, model call failed, or not finite.",
        lambda now: now.counts.fail.count,
    ),
    "sketchbatch_broken_batches": ("Model calls that failed.", lambda now: now.counts.broken_calls),
    "sketchbatch_nonfinite_rows": (
        "Rows with a score that is NaN or infinite; their requests ended with INTERNAL.",
        lambda now: now.counts.nonfinite_rows,
    ),
    "sketchbatch_padding_rows": ("Rows that pad batches to their bucket on CUDA.", lambda now: _padding_rows(now)),
}
_GAUGES: dict[str, tuple[str, _Read]] = {
    "sketchbatch_queued_rows": ("Rows that wait for a model call.", lambda now: now.model.batcher.queued_rows),
    "sketchbatch_queue_limit_rows": (
        "Maximum rows that wait for a model call: --max-queued-rows.",
        lambda now: now.model.batcher.limits.max_queued_rows,
    ),
    "sketchbatch_lanes": ("Execution slots: concurrent model calls.", lambda now: now.model.batcher.limits.slots),
    "sketchbatch_model_failing": ("1 = the last three model calls failed.", lambda now: now.model.batcher.is_failing),
}
_HISTOGRAMS: dict[str, tuple[str, Callable[[Counts], Histogram]]] = {
    "sketchbatch_queue_seconds": ("Answered requests: time to their first model call.", lambda counts: counts.queue),
    "sketchbatch_assemble_seconds": ("Batches: time to concatenate their rows.", lambda counts: counts.assembling),
    "sketchbatch_infer_seconds": ("Batches: time of their model call.", lambda counts: counts.call_times),
    "sketchbatch_encode_seconds": ("Answered requests: time to encode the scores.", lambda counts: counts.encoding),
}


class ServiceMetrics:
    """Metrics of one process of the service; `collect` is thread-safe. Before `include` there are few of them.

    Every series has the label `worker`, so that the series of several workers do not collide, and the restart of a
    worker resets only its own counters.
    """

    def __init__(self, health: HealthServicer, *, worker: int) -> None:
        self._health = health
        self._worker = str(worker)
        self._process = ProcessCollector(registry=None)
        self._served: tuple[ModelRegistry, Server, int] | None = None
        self._credentials: tuple[ServerTls | None, TokenFile | None] = (None, None)

    def include(self, models: ModelRegistry, server: Server, *, max_connections: int) -> None:
        """Add the metrics of the models and of the server, which exist once the first model is loaded."""
        self._served = models, server, max_connections

    def include_credentials(self, tls: ServerTls | None, tokens: TokenFile | None) -> None:
        """Add the metrics of the certificate and token files; None = the setting is not set."""
        self._credentials = tls, tokens

    def collect(self) -> list[Metric]:
        """Return the current values of all metrics."""
        text = "1 = health reports SERVING; 0 = the service waits for a model or is draining, or a model is failing."
        serving = GaugeMetricFamily("sketchbatch_serving", text, value=self._health.is_serving)
        metrics = [
            serving,
            background_errors(),
            *credential_metrics(*self._credentials),
            *(_of_served(*self._served) if self._served else ()),
            *self._process.collect(),
        ]
        for metric in metrics:
            metric.samples = [
                sample._replace(labels={"worker": self._worker, **sample.labels}) for sample in metric.samples
            ]
        return metrics


def _of_served(models: ModelRegistry, server: Server, max_connections: int) -> Iterator[Metric]:
    text = "Calls that ended, by method and gRPC status; a stream is one call."
    ends = list(server.call_ends.histograms())
    counts = (([method, code], times.total().count) for method, code, times in ends)
    yield _filled(CounterMetricFamily("sketchbatch_requests", text, labels=["method", "code"]), counts)
    text = "Calls that ended: time from their arrival until their response is passed to gRPC; a stream is one call."
    seconds = HistogramMetricFamily("sketchbatch_request_seconds", text, labels=["method", "code"])
    for method, code, times in ends:
        seconds.add_metric([method, code], _buckets(BOUNDS_S, times.counts), times.seconds)
    yield seconds
    text = "Maximum connections: --max-connections, or fewer if the limit of open files is too low."
    yield GaugeMetricFamily("sketchbatch_connection_limit", text, value=max_connections)
    with suppress(OSError):  # the system does not list the connections
        text = "Open connections to the service port."
        yield GaugeMetricFamily("sketchbatch_connections", text, value=server.connections())
    text = "Requests, and messages of streams, that ended in an error, by error; docs/operations.md lists them."
    by_reason = (([reason], count) for reason, count in rejections().items())
    yield _filled(CounterMetricFamily("sketchbatch_rejected", text, labels=["reason"]), by_reason)
    text = "Model files loaded since the start, by outcome: served or refused."
    loads = (([outcome], count) for outcome, count in models.loads.items())
    yield _filled(CounterMetricFamily("sketchbatch_model_loads", text, labels=["outcome"]), loads)
    text = (
        "Existing model files that are refused, or are in the wrong place of the repository; the log has the reasons."
    )
    unserved = len(models.refused) + len(models.misplaced)
    yield GaugeMetricFamily("sketchbatch_refused_models", text, value=unserved)
    yield from _of_models([_Snapshot(model, model.batcher.statistics.counts()) for model in models])


def _of_models(snapshots: list[_Snapshot]) -> Iterator[Metric]:
    for name, (text, read) in _COUNTERS.items():
        yield _filled(CounterMetricFamily(name, text, labels=_LABELS), ((now.labels, read(now)) for now in snapshots))
    for name, (text, read) in _GAUGES.items():
        yield _filled(GaugeMetricFamily(name, text, labels=_LABELS), ((now.labels, read(now)) for now in snapshots))
    for name, (text, histogram_of) in _HISTOGRAMS.items():
        times = HistogramMetricFamily(name, text, labels=_LABELS)
        for now in snapshots:
            histogram = histogram_of(now.counts)
            times.add_metric(now.labels, _buckets(BOUNDS_S, histogram.counts), histogram.seconds)
        yield times
    yield _batch_rows(snapshots)
    text = "Batches, by the reason for not adding rows: full, shared (the rest is for other slots), or empty (queue)."
    closed = (([*now.labels, why], count) for now in snapshots for why, count in now.counts.closed.items())
    yield _filled(CounterMetricFamily("sketchbatch_batches", text, labels=[*_LABELS, "closed"]), closed)
    text = "Always 1; the labels identify the served model files and their providers."
    info = (([*now.labels, now.model.provider, now.model.artifact.digest], 1) for now in snapshots)
    yield _filled(GaugeMetricFamily("sketchbatch_model_info", text, labels=[*_LABELS, "provider", "digest"]), info)


def _batch_rows(snapshots: list[_Snapshot]) -> Metric:
    sizes = HistogramMetricFamily("sketchbatch_batch_rows", "Batches: number of their rows.", labels=_LABELS)
    for now in snapshots:
        counts, rows_total = [0] * (len(_BOUNDS_ROWS) + 1), 0
        for rows, calls in now.counts.calls.items():
            counts[sum(rows > bound for bound in _BOUNDS_ROWS)] += calls
            rows_total += rows * calls
        sizes.add_metric(now.labels, _buckets(_BOUNDS_ROWS, counts), rows_total)
    return sizes


def _padding_rows(now: _Snapshot) -> int:
    return sum(
        calls * (next(bucket for bucket in now.model.buckets if bucket >= rows) - rows)
        for rows, calls in (now.counts.calls.items() if now.model.buckets else ())
    )


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[tuple[Sequence[str], float]]
) -> CounterMetricFamily | GaugeMetricFamily:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _buckets(bounds: Iterable[float], counts: list[int]) -> list[tuple[str, float]]:
    """Return Prometheus' cumulative buckets; the last of `counts` is of values above all bounds."""
    return list(zip([*map(floatToGoString, bounds), "+Inf"], accumulate(counts), strict=True))
