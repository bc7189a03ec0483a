"""Send OpenTelemetry traces of `Classify` calls: one span per call, with its times in the queue and in the model.

A span continues the client's trace (W3C `traceparent` in the metadata). The service imports this module only if traces
are configured; it needs the extra `traces`. Environment variables of OpenTelemetry configure sampling:
docs/operations.md.
"""

import time
from collections.abc import Callable
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
    """`ClassifierServicer` that records a span for each sampled `Classify` call."""

    def trace(self, endpoint: str) -> "TracedServicer":
        """Send spans to `endpoint`/v1/traces; the exporter sends the last ones when the process exits."""
        provider = TracerProvider(resource=Resource.create({"service.name": "sketchbatch"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))
        self._tracer = provider.get_tracer(__name__)
        return self

    def Classify(self, request: Request, call: UnaryCall) -> None:
        parent = propagate.extract(dict(call.invocation_metadata()))
        span = self._tracer.start_span(_NAME, parent, trace.SpanKind.SERVER, {"rpc.system": "grpc"})
        super().Classify(request, _TracedCall(call, self._tracer, span) if span.is_recording() else call)


class _TracedCall:
    """A `UnaryCall` with a trace span, which ends when the call ends."""

    def __init__(self, call: UnaryCall, tracer: trace.Tracer, span: trace.Span) -> None:
        self._call = call
        self._tracer = tracer
        self._span = span
        self._started_at_ns = time.time_ns()
        self.time_remaining = call.time_remaining
        self.invocation_metadata = call.invocation_metadata

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        def cancel_and_end() -> None:
            cancel()
            self._end(grpc.StatusCode.CANCELLED, "cancelled by the client")

        self._call.on_cancel(cancel_and_end)

    def respond(self, response: Any) -> None:
        self._add_stages(response)
        self._end(grpc.StatusCode.OK)
        self._call.respond(response)

    def abort(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        self._end(code, details)
        self._call.abort(code, details, trailers)

    def _add_stages(self, response: pb.ClassifyResponse) -> None:
        """Add a child span each for the queue and the model, and the response's fields as attributes."""
        names = ("request_id", "model_name", "model_version", "rows")
        self._span.set_attributes({f"sketchbatch.{name}": getattr(response, name) for name in names})
        context = trace.set_span_in_context(self._span)
        start_ns, now_ns = self._started_at_ns, time.time_ns()
        for name, took_us in (("queue", response.queue_us), ("infer", response.inference_us)):
            end_ns = min(start_ns + took_us * 1000, now_ns)  # model calls of a large request may run concurrently
            self._tracer.start_span(name, context, start_time=start_ns).end(end_ns)
            start_ns = end_ns

    def _end(self, code: grpc.StatusCode, error: str = "") -> None:
        if not self._span.is_recording():
            return  # the client cancelled the call before the response was ready
        self._span.set_attribute("rpc.grpc.status_code", code.value[0])
        if error:
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end()
