"""Test that a running service reports calls in metrics, log and traces."""

import gzip
import os
import signal
import socket
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from polling import wait_until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from worker_processes import children

pytestmark = [pytest.mark.timeout(90), pytest.mark.both_transports]  # several tests start several processes

# example of a trace id and a span id in the W3C recommendation "Trace Context"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

Samples = dict[str, dict[str, float]]


def scrape(address: str) -> Samples:
    """Return the value of each metric by worker, summed over all other labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=15) as response:
        text = response.read().decode()
    assert text.count("# TYPE sketchbatch_rows_total ") <= 1  # all workers report into one metric family
    found: Samples = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][sample.labels["worker"]] += sample.value
    return found


def scrape_until(address: str, is_true: Callable[[Samples], object]) -> Samples:
    """Read the metrics repeatedly until `is_true` returns a true value for them; return these metrics.

    The result of one scrape may be incomplete, because the metrics of a worker that needs more than a second to respond
    are missing.
    """
    found: Samples = {}

    def scraped() -> object:
        nonlocal found
        found = scrape(address)
        return is_true(found)

    wait_until(scraped)
    return found


def classify(address: str, rows: int, metadata: tuple[tuple[str, str], ...] = (), **fields) -> pb.ClassifyResponse:
    """Send one request over a new connection."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        return stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784 * rows), **fields), metadata=metadata)


@contextmanager
def collector() -> Iterator[tuple[str, list]]:
    """Run an OpenTelemetry collector; yield its address and the growing list of spans that it has received."""
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
            """Print no line for a request."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_call_appears_in_metrics_log_and_traces(start_service, tiny_model):
    """A call appears in the metrics, in the debug log with its request id, and in the traces.

    The span of the call belongs to the trace of the client, and contains the spans `queue` and `infer`.
    """
    with collector() as (endpoint, spans):
        flags = ["--metrics-address", "127.0.0.1:0", "--otlp-endpoint", endpoint, "--log-level", "debug"]
        service = start_service(tiny_model, *flags)
        classify(service.address, 3, (("traceparent", f"00-{TRACE}-{SPAN}-01"),), request_id="abc")
        with suppress(grpc.RpcError):
            unknown = {"request_id": "no", "model_name": "zebra"}
            classify(service.address, 1, (("traceparent", f"00-{TRACE}-{SPAN}-01"),), **unknown)
        # this trace header states that the client does not sample the trace, so no span is exported
        classify(service.address, 1, (("traceparent", f"00-{TRACE}-{SPAN}-00"),))
        found = scrape_until(service.metrics_address, lambda found: found["sketchbatch_requests_total"] == {"1": 3})
        assert found["sketchbatch_rows_total"] == {"1": 4}
        assert found["process_resident_memory_bytes"]["1"] > 1e7
        code, log = service.stop()
    assert code == 0
    events = {event["request_id"]: event for event in log if "request_id" in event}
    assert (events["abc"]["message"], events["abc"]["rows"]) == ("request answered", 3)
    assert (events["no"]["message"], events["no"]["code"]) == ("request rejected", "NOT_FOUND")

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


def test_metrics_are_valid_in_both_formats(start_service, tiny_model):
    """The strict parser of OpenMetrics and the one of the text format read the same families, also when compressed.

    Each family has a help text and, if it is a counter, samples whose names end with `_total`.
    """
    service = start_service(tiny_model, "--metrics-address", "127.0.0.1:0")
    classify(service.address, 3)
    found = []
    for accept, parse in (
        ("application/openmetrics-text; version=1.0.0", parse_openmetrics),
        ("text/plain", text_string_to_metric_families),
    ):
        headers = {"Accept": accept, "Accept-Encoding": "gzip"}
        request = urllib.request.Request(f"http://{service.metrics_address}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=15) as response:
            assert response.headers["Content-Type"].startswith(accept.partition(";")[0])
            text = gzip.decompress(response.read()).decode()
        found.append({family.name.removesuffix("_total"): family for family in parse(text)})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 20
    for family in found[0].values():
        assert family.documentation
        names = {sample.name for sample in family.samples}  # empty for what a service without TLS does not have
        assert family.type != "counter" or names <= {f"{family.name}_total"}
    assert service.stop()[0] == 0


def test_one_scrape_returns_the_metrics_of_all_workers(start_service, tiny_model):
    """One scrape returns the metrics of all workers, with the number of the worker as a label.

    If a worker does not respond in time, its metrics are missing, and its late response is discarded. A worker that
    replaces a killed worker begins with new metrics.
    """
    service = start_service(tiny_model, "--workers", "2", "--metrics-address", "127.0.0.1:0")
    sent = 0

    def send_requests() -> None:
        nonlocal sent
        for _ in range(20):  # the kernel spreads new connections over the two workers
            classify(service.address, 2)
            sent += 2

    def has_all_rows(found: Samples) -> bool:
        rows = found["sketchbatch_rows_total"]
        return len(rows) == 2 and sum(rows.values()) == sent

    send_requests()
    rows = scrape_until(service.metrics_address, has_all_rows)["sketchbatch_rows_total"]
    assert min(rows.values()) > 0
    stopped = children(service.process.pid)[0]
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{stopped}/stat").read_text().split()[2] == "T")
    scrape_until(service.metrics_address, lambda found: len(found["sketchbatch_rows_total"]) == 1)
    os.kill(stopped, signal.SIGCONT)

    def is_up_to_date() -> bool:
        """Send requests and scrape once; return whether the metrics count the rows of these requests.

        If the service kept the late responses of a worker, every scrape would return old metrics of this worker.
        """
        send_requests()
        return has_all_rows(scrape(service.metrics_address))

    wait_until(is_up_to_date, limit_s=40)
    found = scrape_until(service.metrics_address, has_all_rows)
    rows, started = found["sketchbatch_rows_total"], found["process_start_time_seconds"]
    os.kill(stopped, signal.SIGKILL)
    found = scrape_until(
        service.metrics_address,
        lambda found: (
            set(found["process_start_time_seconds"]) == {"1", "2"} and found["process_start_time_seconds"] != started
        ),
    )
    (replaced,) = (worker for worker in started if found["process_start_time_seconds"][worker] != started[worker])
    assert found["sketchbatch_rows_total"] == rows | {replaced: 0}
    assert service.stop()[0] == 0


def test_a_metrics_address_in_use_stops_the_start_with_one_line(run_command, tiny_model):
    """If the metrics address is in use, the service prints one line of error and does not start.

    The line is the same for one process and for several workers.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for workers in ("1", "2"):
            words = ["--model", tiny_model, "--address", "127.0.0.1:0", "--metrics-address", address]
            refused = run_command("sketchbatch-serve", *words, "--workers", workers, "--log-level", "error")
            assert (refused.returncode, refused.stderr) == (
                1,
                f"sketchbatch-serve: cannot listen for metrics on {address}: Address already in use\n",
            )


def test_traces_without_their_extra_stop_the_start_with_one_line(run_command, tiny_model, tmp_path):
    """Without OpenTelemetry, `--otlp-endpoint` stops the start, and the message names the extra to install."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('there is none')")
    flags = ["--address", "127.0.0.1:0", "--otlp-endpoint", "http://127.0.0.1:4318", "--log-level", "error"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    refused = run_command("sketchbatch-serve", "--model", tiny_model, *flags, env=environment)
    message = "sketchbatch-serve: --otlp-endpoint needs sketchbatch-service[traces]: there is none\n"
    assert (refused.returncode, refused.stderr) == (1, message)
