"""Seeing inside a running service: metrics over HTTP, the log, traces."""

import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from worker_processes import children

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"  # the W3C recommendation's example


def scrape(address: str) -> dict[str, dict[str, float]]:
    """By sample and worker: the values, summed over the other labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert text.count("# TYPE sketchbatch_rows_total ") == 1  # one family, whatever the workers
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            of_workers = found.setdefault(sample.name, {})
            of_workers[sample.labels["worker"]] = of_workers.get(sample.labels["worker"], 0) + sample.value
    return found


def ask(address: str, rows: int, metadata: tuple[tuple[str, str], ...] = (), **fields) -> pb.ClassifyResponse:
    """One request over a connection of its own."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        return stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784 * rows), **fields), metadata=metadata)


@contextmanager
def collector() -> Iterator[tuple[str, list]]:
    """An OpenTelemetry collector: yields its address, and the spans that it was sent."""
    collected = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            sent = collected.ExportTraceServiceRequest.FromString(body)
            spans.extend(span for each in sent.resource_spans for scope in each.scope_spans for span in scope.spans)
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_call_shows_in_metrics_log_and_traces(start_service, tiny_model):
    """The log has it at `debug`, by its request id; its span continues the caller's, with its parts inside."""
    with collector() as (endpoint, spans):
        flags = ["--metrics-address", "127.0.0.1:0", "--otlp-endpoint", endpoint, "--log-level", "debug"]
        service = start_service(tiny_model, *flags)
        ask(service.address, 3, (("traceparent", f"00-{TRACE}-{SPAN}-01"),), request_id="abc")
        with suppress(grpc.RpcError):
            ask(service.address, 1, (("traceparent", f"00-{TRACE}-{SPAN}-01"),), request_id="no", model_name="zebra")
        ask(service.address, 1, (("traceparent", f"00-{TRACE}-{SPAN}-00"),))  # its caller does not want a trace
        found = scrape(service.metrics_address)
        assert found["sketchbatch_rows_total"] == {"1": 4}
        assert found["sketchbatch_requests_total"] == {"1": 3}
        assert found["process_resident_memory_bytes"]["1"] > 1e7
        code, log = service.stop()
    assert code == 0
    told = {event["request_id"]: event for event in log if "request_id" in event}
    assert (told["abc"]["message"], told["abc"]["rows"]) == ("request answered", 3)
    assert (told["no"]["message"], told["no"]["code"]) == ("request rejected", "NOT_FOUND")

    assert {span.trace_id.hex() for span in spans} == {TRACE}
    calls = [span for span in spans if span.name == "sketchbatch.v1.ClassifierService/Classify"]
    assert [span.parent_span_id.hex() for span in calls] == [SPAN, SPAN]
    statuses = [{a.key: a.value.int_value for a in span.attributes}["rpc.grpc.status_code"] for span in calls]
    assert statuses == [0, grpc.StatusCode.NOT_FOUND.value[0]]
    parts = [span for span in spans if span.parent_span_id == calls[0].span_id]
    assert [span.name for span in parts] == ["queue", "infer"]
    times = [time for part in parts for time in (part.start_time_unix_nano, part.end_time_unix_nano)]
    assert [calls[0].start_time_unix_nano, *times, calls[0].end_time_unix_nano] == sorted(
        [calls[0].start_time_unix_nano, *times, calls[0].end_time_unix_nano]
    )


@pytest.mark.timeout(60)
def test_the_metrics_of_all_workers_stand_side_by_side(start_service, tiny_model):
    """On one port, told apart by a label. One that does not answer is left out, and so is what it answers too late; one
    that was killed, until its successor serves.
    """
    service = start_service(tiny_model, "--workers", "2", "--metrics-address", "127.0.0.1:0")
    for _ in range(40):
        ask(service.address, 2)
    rows = scrape(service.metrics_address)["sketchbatch_rows_total"]
    assert sum(rows.values()) == 80
    assert min(rows["1"], rows["2"]) > 0
    halted = children(service.process.pid)[0]
    os.kill(halted, signal.SIGSTOP)
    while Path(f"/proc/{halted}/stat").read_text().split()[2] != "T":  # it takes a moment
        time.sleep(0.01)
    assert len(scrape(service.metrics_address)["sketchbatch_rows_total"]) == 1
    os.kill(halted, signal.SIGCONT)
    time.sleep(0.3)  # its answer comes
    for _ in range(20):
        ask(service.address, 2)
    rows = scrape(service.metrics_address)["sketchbatch_rows_total"]
    assert sum(rows.values()) == 120
    begun = scrape(service.metrics_address)["process_start_time_seconds"]
    os.kill(halted, signal.SIGKILL)
    after = begun
    while set(after) != {"1", "2"} or after == begun:
        time.sleep(0.1)
        after = scrape(service.metrics_address).get("process_start_time_seconds", {})
    (renewed,) = (worker for worker in begun if after[worker] != begun[worker])
    assert scrape(service.metrics_address)["sketchbatch_rows_total"] == rows | {renewed: 0}
    assert service.stop()[0] == 0


def test_a_metrics_address_that_cannot_be_had_is_one_line(run_command, tiny_model):
    """With one process as with several."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for workers in ("1", "2"):
            words = ["--model", tiny_model, "--address", "127.0.0.1:0", "--metrics-address", address]
            refused = run_command("sketchbatch-serve", *words, "--workers", workers, "--log-level", "error")
            assert (refused.returncode, refused.stderr) == (
                1,
                f"sketchbatch-serve: cannot listen for metrics on {address}: Address already in use\n",
            )


def test_traces_without_their_extra_are_refused_in_one_line(run_command, tiny_model, tmp_path):
    """It says what to install."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('there is none')")
    flags = ["--address", "127.0.0.1:0", "--otlp-endpoint", "http://127.0.0.1:4318", "--log-level", "error"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    refused = run_command("sketchbatch-serve", "--model", tiny_model, *flags, env=environment)
    message = "sketchbatch-serve: --otlp-endpoint needs sketchbatch-service[traces]: there is none\n"
    assert (refused.returncode, refused.stderr) == (1, message)
