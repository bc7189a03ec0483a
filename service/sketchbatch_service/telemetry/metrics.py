"""Names the metrics, and makes them of what the service counts, whenever they are asked for.

Nothing is told to prometheus_client while requests run: docs/decisions/0018 says what that would cost.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from ..api.health import HealthServicer
from ..api.rpc_context import rejections
from ..batching.statistics import BOUNDS_S, Counts, Histogram
from ..models.registry import ModelRegistry, ServedModel
from ..transport.core_server import CoreServer

_BOUNDS_ROWS = tuple(1 << n for n in range(15))


class _Seen(NamedTuple):
    """A model, and its counts at one moment."""

    model: ServedModel
    counts: Counts


_Read = Callable[[_Seen], float]

_COUNTERS: dict[str, tuple[str, _Read]] = {
    "sketchbatch_rows": ("Rows answered.", lambda seen: seen.counts.rows),
    "sketchbatch_unanswered_requests": (
        "Requests accepted and not run to the end: out of time or withdrawn in the queue, or in a broken batch.",
        lambda seen: seen.counts.fail.count,
    ),
    "sketchbatch_broken_batches": (
        "Model calls that failed all their callers.",
        lambda seen: seen.counts.broken_calls,
    ),
    "sketchbatch_padding_rows": (
        "Rows computed for nobody, since CUDA runs fixed numbers of rows.",
        lambda seen: _padding_rows(seen),
    ),
}
_GAUGES: dict[str, tuple[str, _Read]] = {
    "sketchbatch_queued_rows": ("Rows waiting for a model call.", lambda seen: seen.model.batcher.queued_rows),
    "sketchbatch_queue_limit_rows": (
        "Rows that may wait: --max-queued-rows.",
        lambda seen: seen.model.batcher.limits.max_queued_rows,
    ),
    "sketchbatch_lanes": ("Model calls that may run at a time.", lambda seen: seen.model.batcher.limits.slots),
    "sketchbatch_model_failing": (
        "1 = the model's last calls, three or more in a row, broke.",
        lambda seen: seen.model.batcher.is_failing,
    ),
}
_HISTOGRAMS: dict[str, tuple[str, Callable[[Counts], Histogram]]] = {
    "sketchbatch_queue_seconds": ("Answered requests, until their first model call.", lambda counts: counts.queue),
    "sketchbatch_assemble_seconds": ("Batches, putting rows of requests together.", lambda counts: counts.assembling),
    "sketchbatch_infer_seconds": ("Batches, in the model.", lambda counts: counts.call_times),
    "sketchbatch_encode_seconds": ("Answered requests, making the answer of scores.", lambda counts: counts.encoding),
}


class ServiceMetrics:
    """The metrics of one process of the service; `collect` may be called from any thread.

    Every series says which `worker` it is of: several stand side by side, and one that is started anew counts from 0
    without disturbing the others'.
    """

    def __init__(self, models: ModelRegistry, server: CoreServer, health: HealthServicer, *, worker: int) -> None:
        self._models = models
        self._server = server
        self._health = health
        self._worker = str(worker)
        self._process = ProcessCollector(registry=None)

    def collect(self) -> list[Metric]:
        """All metrics as they are now."""
        seen = [_Seen(model, model.batcher.statistics.counts()) for model in self._models]
        metrics = [
            self._serving(),
            self._requests(),
            _rejected(),
            *self._loads(),
            *_of_models(seen),
            *self._process.collect(),
        ]
        for metric in metrics:
            metric.samples = [
                sample._replace(labels={"worker": self._worker, **sample.labels}) for sample in metric.samples
            ]
        return metrics

    def _serving(self) -> Metric:
        text = "1 = health says SERVING; 0 = draining, or a model keeps failing."
        return GaugeMetricFamily("sketchbatch_serving", text, value=self._health.is_serving)

    def _requests(self) -> Metric:
        text = "Calls that ended, by method and gRPC status; a stream is one call."
        requests = CounterMetricFamily("sketchbatch_requests", text, labels=["method", "code"])
        for method, code, count in self._server.call_ends():
            requests.add_metric([method, code], count)
        return requests

    def _loads(self) -> Iterator[Metric]:
        text = "Model files loaded, at start and since, by what came of it: served or refused."
        loads = CounterMetricFamily("sketchbatch_model_loads", text, labels=["outcome"])
        for outcome, count in self._models.loads.items():
            loads.add_metric([outcome], count)
        yield loads
        text = "Model files that are there and not served; RepositoryIndex and the log say why."
        yield GaugeMetricFamily("sketchbatch_refused_models", text, value=len(self._models.refused))


def _rejected() -> Metric:
    text = "Requests, and messages of streams, that ended in an error, by its class in errors.py."
    rejected = CounterMetricFamily("sketchbatch_rejected", text, labels=["reason"])
    for reason, count in rejections().items():
        rejected.add_metric([reason], count)
    return rejected


def _of_models(all_seen: list[_Seen]) -> Iterator[Metric]:
    labels = ["model", "version"]
    for name, (text, read) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=labels)
        for seen in all_seen:
            counter.add_metric(_key(seen), read(seen))
        yield counter
    for name, (text, read) in _GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=labels)
        for seen in all_seen:
            gauge.add_metric(_key(seen), read(seen))
        yield gauge
    for name, (text, histogram_of) in _HISTOGRAMS.items():
        times = HistogramMetricFamily(name, text, labels=labels)
        for seen in all_seen:
            histogram = histogram_of(seen.counts)
            times.add_metric(_key(seen), _cumulated(BOUNDS_S, histogram.counts), histogram.seconds)
        yield times
    yield _batch_rows(all_seen)
    yield _batches(all_seen)
    yield _model_info(all_seen)


def _batch_rows(all_seen: list[_Seen]) -> Metric:
    sizes = HistogramMetricFamily("sketchbatch_batch_rows", "Rows of a batch.", labels=["model", "version"])
    for seen in all_seen:
        calls = {rows: duration.count for rows, duration in seen.counts.calls.items()}
        counts = [0] * (len(_BOUNDS_ROWS) + 1)
        for rows, count in calls.items():
            counts[sum(rows > bound for bound in _BOUNDS_ROWS)] += count
        all_rows = sum(rows * count for rows, count in calls.items())
        sizes.add_metric(_key(seen), _cumulated(_BOUNDS_ROWS, counts), all_rows)
    return sizes


def _batches(all_seen: list[_Seen]) -> Metric:
    text = "Batches, by why no more rows went in: it was full, the rest was for idle slots, or the queue was empty."
    batches = CounterMetricFamily("sketchbatch_batches", text, labels=["model", "version", "closed"])
    for seen in all_seen:
        for closed, count in seen.counts.closed.items():
            batches.add_metric([*_key(seen), closed], count)
    return batches


def _model_info(all_seen: list[_Seen]) -> Metric:
    labels = ["model", "version", "provider", "digest"]
    info = GaugeMetricFamily("sketchbatch_model_info", "1; the labels say what is served.", labels=labels)
    for seen in all_seen:
        info.add_metric([*_key(seen), seen.model.provider, seen.model.artifact.digest], 1)
    return info


def _key(seen: _Seen) -> list[str]:
    return [seen.model.name, seen.model.version]


def _padding_rows(seen: _Seen) -> int:
    return sum(
        calls.count * (next(bucket for bucket in seen.model.buckets if bucket >= rows) - rows)
        for rows, calls in (seen.counts.calls.items() if seen.model.buckets else ())
    )


def _cumulated(bounds: Iterable[float], counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus' buckets, each with all that are below it, of counts of which the last is above all bounds."""
    return list(zip([*map(floatToGoString, bounds), "+Inf"], accumulate(counts), strict=True))
