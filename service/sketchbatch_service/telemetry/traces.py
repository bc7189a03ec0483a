"""Sends OpenTelemetry traces of `Classify` calls: a span for each, with its time in the queue and in the model.

Continues the caller's trace (W3C `traceparent` in the metadata). Loaded only where traces are wanted, and needs the
extra `traces`. OpenTelemetry's own variables say which calls are sampled and more: docs/operations.md.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from sketchbatch.v1 import classifier_pb2 as pb

from ..api.classifier.codec import Request
from ..api.classifier.servicer import ClassifierServicer
from ..transport.interface import Trailers, UnaryCall

_NAME = "sketchbatch.v1.ClassifierService/Classify"


class TracedServicer(ClassifierServicer):
    """`ClassifierServicer`, each of whose `Classify` calls that is sampled makes a span."""

    def trace(self, endpoint: str) -> "TracedServicer":
        """Sends spans to `endpoint`/v1/traces from now on; the last of them when the process ends."""
        provider = TracerProvider(resource=Resource.create({"service.name": "sketchbatch"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
        self._tracer = provider.get_tracer(__name__)
        return self

    def Classify(self, request: Request, call: UnaryCall) -> None:
        parent = propagate.extract(dict(call.invocation_metadata()))
        span = self._tracer.start_span(_NAME, parent, trace.SpanKind.SERVER, {"rpc.system": "grpc"})
        super().Classify(request, _TracedCall(call, self._tracer, span) if span.is_recording() else call)


class _TracedCall:
    """A call whose end is also that of its span."""

    def __init__(self, call: UnaryCall, tracer: trace.Tracer, span: trace.Span) -> None:
        self._call = call
        self._tracer = tracer
        self._span = span
        self._began_at = time.time_ns()

    def time_remaining(self) -> float:
        return self._call.time_remaining()

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self._call.invocation_metadata()

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        def leave() -> None:
            cancel()
            self._end(grpc.StatusCode.CANCELLED, "the caller left")

        self._call.on_cancel(leave)

    def respond(self, response: Any) -> None:
        self._add_parts(response)
        self._end(grpc.StatusCode.OK)
        self._call.respond(response)

    def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        self._end(code, details)
        self._call.abort(code, details, trailers)

    def _add_parts(self, response: pb.ClassifyResponse) -> None:
        """The times of the answer as spans of their own, and what else it says of itself."""
        names = ("request_id", "model_name", "model_version", "rows")
        self._span.set_attributes({f"sketchbatch.{name}": getattr(response, name) for name in names})
        inside = trace.set_span_in_context(self._span)
        start, now = self._began_at, time.time_ns()
        for name, took_us in (("queue", response.queue_us), ("infer", response.inference_us)):
            end = min(start + took_us * 1000, now)  # the calls of a large request ran side by side
            self._tracer.start_span(name, inside, start_time=start).end(end)
            start = end

    def _end(self, code: grpc.StatusCode, problem: str = "") -> None:
        if not self._span.is_recording():
            return  # the caller left, and the answer comes all the same
        self._span.set_attribute("rpc.grpc.status_code", code.value[0])
        if problem:
            self._span.set_status(trace.StatusCode.ERROR, problem)
        self._span.end()
