"""The client against real servers: results, splitting, retries, deadlines and errors."""

import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from onnx_models import LABELS
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import (
    Client,
    DeadlineExceeded,
    ModelNotFound,
    Overloaded,
    RequestRefused,
    ServerFailed,
    SketchbatchError,
    Unauthenticated,
    Unavailable,
    errors,
)
from sketchbatch_client.rpc.classification import joined
from sketchbatch_client.rpc.connections.targets import proxy_of
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy
from sketchbatch_client.rpc.retries.retry_state import RetryState
from sketchbatch_client.scoring.job import ProgressListener, ScoreJob, write_scores


@pytest.fixture
def client(tiny_service) -> Iterator[Client]:
    """Connect a client to the tiny service; the client sends at most seven rows per request.

    With this limit, a test needs few rows for a call of several requests.
    """
    with Client(tiny_service.address, rows_per_request=7) as client:
        yield client


@pytest.fixture
def expected(tiny_model) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that computes the scores of bitmaps with ONNX Runtime, without a service."""
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    return lambda bitmaps: session.run(["scores"], {"bitmaps": bitmaps})[0]


@pytest.mark.parametrize("rows", [1, 7, 8, 100])
def test_any_number_of_rows_is_scored_in_order(client, expected, noise, rows):
    """Rows are split into requests and joined again; the scores equal those of ONNX Runtime."""
    result = client.classify(noise(rows))
    assert np.allclose(result.scores, expected(noise(rows)), atol=1e-6)
    assert result.class_index[:, 0].tolist() == result.scores.argmax(axis=1).tolist()
    assert result.label.tolist() == [LABELS[index] for index in result.class_index[:, 0]]
    assert np.array_equal(result.score[:, 0], result.scores.max(axis=1))
    assert (result.model_name, result.model_version, len(result)) == ("tiny", "1", rows)


def test_top_k_returns_only_the_best_classes(client, expected, noise):
    """With `top_k`, the best classes come first, and the result has no scores of the other classes."""
    result = client.classify(noise(20), top_k=2)
    assert result.scores is None
    assert np.array_equal(result.class_index, np.argsort(-expected(noise(20)), kind="stable")[:, :2])
    assert (result.score[:, 0] >= result.score[:, 1]).all()


@pytest.mark.parametrize("rows", [1, 50])
def test_a_result_has_the_times_of_the_service(client, noise, rows):
    """A result has the longest time in the queue and in the model of its requests, also if a call has several."""
    started_at = time.monotonic()
    result = client.classify(noise(rows))
    duration_us = 1e6 * (time.monotonic() - started_at)
    assert 0 < result.inference_us <= duration_us
    assert 0 <= result.queue_us <= duration_us
    parts = list(client.score(noise(rows)))
    whole = joined(parts)
    assert whole.inference_us == max(part.inference_us for part in parts)
    assert whole.queue_us == max(part.queue_us for part in parts)


def test_columns_have_the_names_of_sketchbatch_score(client, noise):
    """The columns are the best class and the scores of all classes or, for a call with top_k, the k best classes."""
    result = client.classify(noise(20))
    columns = result.columns()
    assert list(columns) == ["label", "score", *(f"score_{label}" for label in LABELS)]
    assert columns["label"].tolist() == result.label.tolist()
    assert np.array_equal(np.column_stack([columns[f"score_{label}"] for label in LABELS]), result.scores)
    best = client.classify(noise(20), top_k=2)
    columns = best.columns()
    assert list(columns) == ["label", "score", "label_2", "score_2"]
    assert columns["label_2"].tolist() == [LABELS[index] for index in best.class_index[:, 1]]
    assert np.array_equal(columns["score_2"], best.score[:, 1])


def test_to_pandas_without_pandas_names_the_extra_to_install(client, noise, monkeypatch):
    """Only `to_pandas` imports pandas; without pandas, the error names the extra to install."""
    result = client.classify(noise(1))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'sketchbatch-client\[pandas\]'"):
        result.to_pandas()


def test_the_repr_is_one_line(client, noise):
    """The repr of a result is one line, with the labels and scores of at most three rows."""
    shown = repr(client.classify(noise(100)))
    assert re.fullmatch(r"<Classification of 100 rows by tiny version 1: (\w+ 0\.\d{3}, ){3}\.\.\.>", shown)
    assert repr(client.classify(noise(1))).count(",") == 0


def test_all_shapes_of_bitmaps_are_accepted(client, noise):
    """Bitmaps of the shapes (28, 28), (rows, 784) and (rows, 28, 28) are accepted and receive the same scores."""
    rows = client.classify(noise(3)).scores
    assert np.array_equal(client.classify(noise(3).reshape(3, 784)).scores, rows)
    assert np.allclose(client.classify(noise(3)[1]).scores, rows[1:2], atol=1e-6)


def test_batches_are_taken_only_when_a_request_can_be_sent(client, expected, noise):
    """`score` takes a batch only when its request can be sent.

    If a program closes `score` after the first result, the client has taken at most six of the 100 batches.
    """
    taken = []

    def batches() -> Iterator[np.ndarray]:
        for number in range(100):
            taken.append(number)
            yield noise(5)

    results = client.score(batches())
    assert np.allclose(next(results).scores, expected(noise(5)), atol=1e-6)
    results.close()
    assert len(taken) <= 6


@pytest.mark.parametrize(
    ("bitmaps", "message"),
    [
        (np.zeros((2, 28, 28)), r"must be uint8 .*, got float64 \(2, 28, 28\)"),
        (np.zeros((2, 27, 28), np.uint8), r"got uint8 \(2, 27, 28\)"),
        (np.zeros((0, 28, 28), np.uint8), "at least 1 row, got 0"),
        ([[1, 2]], r"got int64 \(1, 2\)"),
        ([], "at least 1 row, got 0"),
    ],
)
def test_invalid_bitmaps_are_refused_before_sending(client, bitmaps, message):
    """Invalid bitmaps are refused before sending, with the expected and the given type and shape."""
    with pytest.raises(RequestRefused, match=message):
        client.classify(bitmaps)


def test_errors_of_the_server_have_types(client, noise):
    """Each error status has an exception type, and the exception has the message of the server."""
    with pytest.raises(RequestRefused, match=r"top_k must be 1\.\.3"):
        client.classify(noise(1), top_k=4)
    with pytest.raises(ModelNotFound, match="there are: tiny"):
        client.classify(noise(1), model_name="zebra")
    with pytest.raises(ModelNotFound):
        client.model("tiny", "9")


def test_models_and_health_are_returned(client):
    """`model` returns the name, labels and limits of a model, and `health` returns SERVING."""
    model = client.model()
    assert [model] == client.models()
    assert (model.name, model.labels, model.is_default, model.max_request_rows) == ("tiny", LABELS, True, 16384)
    assert client.health() == client.health("sketchbatch.v1.ClassifierService") == "SERVING"
    assert client.health("no.such.Service") == "SERVICE_UNKNOWN"


class Flaky(classifier_pb2_grpc.ClassifierServiceServicer):
    """Reject the first calls with the given status codes and pushbacks, respond to later calls, and count all calls."""

    def __init__(self, *failures: tuple[grpc.StatusCode, str | None]) -> None:
        self.failures = list(failures)
        self.calls = 0

    def Classify(self, request, context):  # noqa: N802
        self.calls += 1
        if self.failures:
            code, pushback_ms = self.failures.pop(0)
            if pushback_ms is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback_ms),))
            context.abort(code, "not now")
        return pb.ClassifyResponse(model_name="m", model_version="1", rows=1, class_index=[0], score=[1.0])

    def GetModel(self, request, context):  # noqa: N802
        return pb.GetModelResponse(model=pb.Model(name="m", version="1", labels=["a"], max_request_rows=100))


@contextmanager
def flaky(*failures: tuple[grpc.StatusCode, str | None], **options: object) -> Iterator[tuple[Client, Flaky]]:
    """Start a server with a `Flaky` servicer; yield a client that retries after 1 ms, and the servicer."""
    servicer = Flaky(*failures)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    retry = RetryPolicy(first_backoff_s=0.001)
    with Client(f"127.0.0.1:{port}", **{"retry": retry, "timeout_s": 30.0} | options) as client:
        yield client, servicer
    server.stop(None).wait()


FULL, DRAINING, STOPPING = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,  # the status that a call receives if the server has just closed its socket
)


@pytest.mark.parametrize("failures", [[(DRAINING, None)] * 9, [(FULL, "1")] * 20, [(STOPPING, None)] * 3])
def test_temporary_errors_are_retried(noise, failures):
    """A request that receives a temporary error is sent again until it succeeds, even after `max_attempts` attempts.

    The temporary errors are UNAVAILABLE, CANCELLED, and RESOURCE_EXHAUSTED with a pushback.
    """
    with flaky(*failures) as (client, server):
        assert client.classify(noise(1), top_k=1).label.tolist() == ["a"]
    assert server.calls == len(failures) + 1


@pytest.mark.parametrize(
    ("failures", "error", "calls"),
    [
        ([(FULL, None)] * 9, Overloaded, 1),  # RESOURCE_EXHAUSTED without pushback means that the message is too large
        ([(FULL, "-1")] * 9, Overloaded, 1),  # a negative pushback forbids a retry
        ([(FULL, "60000")], Overloaded, 1),  # the pushback ends after the deadline
        ([(grpc.StatusCode.INTERNAL, None)] * 9, ServerFailed, 1),
        ([(grpc.StatusCode.INVALID_ARGUMENT, None)] * 9, RequestRefused, 1),
        ([(grpc.StatusCode.UNAUTHENTICATED, None)] * 9, Unauthenticated, 1),
        ([(grpc.StatusCode.PERMISSION_DENIED, None)] * 9, Unauthenticated, 1),
    ],
)
def test_permanent_errors_are_raised_at_once(noise, failures, error, calls):
    """After a permanent error, the client makes no second attempt."""
    with flaky(*failures) as (client, server), pytest.raises(error):
        client.classify(noise(1))
    assert server.calls == calls


def test_without_patience_a_request_has_max_attempts(noise):
    """If the setting `patience_s` of the retry policy is 0, a request has exactly `max_attempts` attempts."""
    retry = RetryPolicy(patience_s=0, first_backoff_s=0.001)
    message = r"no response from .* in 5 attempts: not now"
    with flaky(*[(DRAINING, None)] * 99, retry=retry) as (client, server), pytest.raises(Unavailable, match=message):
        client.classify(noise(1))
    assert server.calls == 5


def rpc_error(code: grpc.StatusCode, pushback_ms: str | None = None) -> grpc.RpcError:
    error = grpc.RpcError()
    error.code = lambda: code
    error.details = lambda: ""
    error.trailing_metadata = lambda: (("grpc-retry-pushback-ms", pushback_ms),) if pushback_ms else ()
    return error


@pytest.mark.parametrize(
    ("policy", "timeout_s", "has_reached_server", "last_failure_s"),
    [
        (RetryPolicy(max_attempts=5), 60, False, 4),
        (RetryPolicy(max_attempts=5, patience_s=0), 60, True, 4),
        (RetryPolicy(max_attempts=1, patience_s=9), 60, True, 9),
        (RetryPolicy(max_attempts=12, patience_s=9), 60, True, 11),
        (RetryPolicy(max_attempts=1), 20, True, 20),
    ],
)
def test_retries_end_with_the_attempts_the_patience_or_the_timeout(
    policy, timeout_s, has_reached_server, last_failure_s
):
    """If a client has never received a response of its server, a request has at most `max_attempts` attempts.

    After the first response of the server, a failing request has at least `max_attempts` attempts. More attempts follow
    until `patience_s` has passed. The timeout `timeout_s` ends the attempts earlier.
    """
    policy = replace(policy, first_backoff_s=1, max_backoff_s=1)
    now_s = 0
    retry = RetryState(policy, "server", timeout_s, has_reached_server, clock=lambda: now_s)
    while retry.delay_s(rpc_error(DRAINING)) is not None:
        now_s += 1  # each attempt fails after one second
    assert now_s == last_failure_s


def test_the_client_waits_for_the_pushback(noise):
    """No attempt of a request starts before the pushback of the server has passed."""
    with flaky((FULL, "150")) as (client, _):
        started_at = time.monotonic()
        client.classify(noise(1), top_k=1)
        assert time.monotonic() - started_at >= 0.15


def test_retries_after_a_pushback_have_jitter():
    """The delay before a retry is at least the pushback, plus a random time, so that clients do not retry together."""
    delays = {RetryPolicy().delay_s(rpc_error(FULL, "100"), 1) for _ in range(20)}
    assert len(delays) == 20
    assert 0.1 <= min(delays) < max(delays) <= 0.15


def test_a_closed_client_raises_unavailable(client, noise):
    """A closed client raises its own error `Unavailable`, not an error of gRPC."""
    client.classify(noise(1))
    client.close()
    with pytest.raises(Unavailable, match="the client was closed"):
        client.classify(noise(1))


def test_the_docstring_of_errors_lists_every_error():
    """The tree in the docstring of the module `errors` lists every error class."""
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, SketchbatchError)]
    classes.remove(SketchbatchError)
    assert all(f"── {each.__name__} " in errors.__doc__ for each in classes)
    assert len(classes) == errors.__doc__.count("── ")


def test_a_local_server_is_not_reached_through_a_proxy(tiny_service, noise, monkeypatch):
    """The client ignores the variable https_proxy for a server on the local machine, also by the machine's name."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with Client(tiny_service.address) as client:
        assert len(client.classify(noise(2))) == 2
    assert proxy_of([f"{socket.gethostname()}:1"]) == ""


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({"https_proxy": "http://user:secret@127.0.0.9:1"}, "https_proxy (127.0.0.9:1)"),
        ({"http_proxy": "127.0.0.9:1"}, "http_proxy (127.0.0.9:1)"),
        ({"http_proxy": "http://a:1", "grpc_proxy": "http://127.0.0.9:1"}, "grpc_proxy (127.0.0.9:1)"),
        ({"https_proxy": "http://127.0.0.9:1", "NO_PROXY": "other,.test"}, ""),
        ({"https_proxy": "http://127.0.0.9:1", "no_proxy": "*"}, ""),
        ({"https_proxy": ""}, ""),
    ],
)
def test_an_error_behind_a_proxy_names_the_proxy(monkeypatch, variables, proxy):
    """An error names the variable and the proxy, without a password; `no_proxy` and `NO_PROXY` may hold the host."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    retry = RetryPolicy(max_attempts=1)
    with Client("drawings.test:1", retry=retry, timeout_s=5) as client, pytest.raises(SketchbatchError) as caught:
        client.models()
    message = str(caught.value)
    assert (f"the request used the proxy in {proxy}; to connect directly, set no_proxy=HOST" in message) == bool(proxy)
    assert ("127.0.0.9:1" in message) == bool(proxy)
    assert "secret" not in message


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("localhost", "localhost"),
        ("[::1]", "[::1]"),
        ("dns:///localhost", "dns:///localhost"),
        ("127.0.0.1:1, localhost", "localhost"),
        ("127.0.0.1:1", ""),
        ("ipv4:127.0.0.1:1", ""),
    ],
)
def test_an_error_for_a_target_without_a_port_names_the_port(target, named):
    """Without a port, gRPC uses 443, which is rarely meant."""
    with Client(target, retry=RetryPolicy(max_attempts=1)) as client, pytest.raises(Unavailable) as caught:
        client.models()
    hint = f"; the port was 443, because {named} has no port; use HOST:PORT"
    assert (hint in str(caught.value), "443, because" in str(caught.value)) == (bool(named), bool(named))


def test_requests_have_at_most_the_rows_that_the_service_allows(start_service, tiny_model, noise):
    """If the service allows fewer rows than `rows_per_request`, the client sends requests of the allowed size."""
    service = start_service(tiny_model, "--max-request-rows", "50")
    with Client(service.address, rows_per_request=1024) as client:
        assert len(client.classify(noise(333))) == 333


class FailsAfter(ProgressListener):
    """Receive the progress of a job, and make the server fail the next request whenever rows have been scored."""

    def __init__(self, server):
        self._server = server

    def opens(self, source):
        pass

    def selects(self, model, score_kind):
        pass

    def begins(self, rows, rows_done):
        self.rows_done = rows_done

    def advances(self, rows):
        """Make the next request fail; the job stores the part of the scored rows before it raises the error."""
        self._server.failures.append((grpc.StatusCode.INTERNAL, None))


def test_a_scoring_job_that_fails_midway_keeps_its_finished_parts(noise, tmp_path):
    """A job that fails midway writes no output; the same job, started again, resumes after the last finished part."""
    np.save(tmp_path / "a.npy", noise(3))
    job = ScoreJob(inputs=[str(tmp_path / "a.npy")], part_rows=1)
    with flaky(rows_per_request=1, in_flight=1) as (client, server):
        watch = FailsAfter(server)
        with pytest.raises(ServerFailed):
            write_scores(client, job, tmp_path / "o.csv", watch)
        assert not (tmp_path / "o.csv").exists()
        server.failures.clear()
        watch.advances = lambda rows: None
        assert write_scores(client, job, tmp_path / "o.csv", watch).rows == 3
        assert watch.rows_done > 0


def test_closing_a_bulk_call_does_not_wait_for_its_requests(start_server, servicer, drawing):
    """If a program closes a bulk call, `close` returns at once, although other requests of the call are in flight."""
    with Client(start_server(servicer), rows_per_request=1, in_flight=4) as client:
        servicer.hold()
        servicer.release(below=1)
        results = client.score(map(drawing, range(10)))
        assert len(next(results)) == 1
        servicer.wait_for_rows(4)
        results.close()
        assert servicer.responses == 1


def test_an_unresponsive_server_ends_in_an_error(noise):
    """A server that accepts connections and never responds, and an absent server, both end in an error."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with Client(address, timeout_s=0.3) as client, pytest.raises((DeadlineExceeded, Unavailable)):
            client.classify(noise(1))
    with (
        Client("127.0.0.1:1", retry=RetryPolicy(max_attempts=2, first_backoff_s=0.01)) as client,
        pytest.raises(Unavailable, match=r"no response from 127\.0\.0\.1:1 in 2 attempts"),
    ):
        client.classify(noise(1))
