"""The client against real servers: results, splitting, retries, deadlines and errors."""

import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

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
from sketchbatch_client.rpc.retries.retry_policy import RetryPolicy
from sketchbatch_client.scoring.job import ScoreJob, write_scores


@pytest.fixture
def client(tiny_service) -> Iterator[Client]:
    """Connected to a real service of the tiny model; small requests, so that a few rows make several."""
    with Client(tiny_service.address, rows_per_request=7) as client:
        yield client


@pytest.fixture
def expected(tiny_model) -> Callable[[np.ndarray], np.ndarray]:
    """The scores that ONNX Runtime itself gives."""
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    return lambda bitmaps: session.run(["scores"], {"bitmaps": bitmaps})[0]


@pytest.mark.parametrize("rows", [1, 7, 8, 100])
def test_any_number_of_rows_comes_back_in_order(client, expected, noise, rows):
    """Cut into requests and joined again: the scores of ONNX Runtime, row for row."""
    result = client.classify(noise(rows))
    assert np.allclose(result.scores, expected(noise(rows)), atol=1e-6)
    assert result.class_index[:, 0].tolist() == result.scores.argmax(axis=1).tolist()
    assert result.label.tolist() == [LABELS[index] for index in result.class_index[:, 0]]
    assert np.array_equal(result.score[:, 0], result.scores.max(axis=1))
    assert (result.model_name, result.model_version, len(result)) == ("tiny", "1", rows)


def test_top_k_brings_the_best_classes_alone(client, expected, noise):
    """Best first, without the rest."""
    result = client.classify(noise(20), top_k=2)
    assert result.scores is None
    assert np.array_equal(result.class_index, np.argsort(-expected(noise(20)), kind="stable")[:, :2])
    assert (result.score[:, 0] >= result.score[:, 1]).all()


def test_a_result_has_the_columns_of_sketchbatch_score(client, noise):
    """The best few, or the best and the score of each class."""
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


def test_a_data_frame_needs_pandas_and_says_so(client, noise, monkeypatch):
    """By the name of what to install; results do without."""
    result = client.classify(noise(1))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'sketchbatch-client\[pandas\]'"):
        result.to_pandas()


def test_a_result_is_shown_in_a_line(client, noise):
    """However many rows it has."""
    shown = repr(client.classify(noise(100)))
    assert re.fullmatch(r"<Classification of 100 rows by tiny version 1: (\w+ 0\.\d{3}, ){3}\.\.\.>", shown)
    assert repr(client.classify(noise(1))).count(",") == 0


def test_one_bitmap_or_flat_rows_are_taken_as_they_are(client, noise):
    """(28, 28), (rows, 784) and (rows, 28, 28) mean the same drawings."""
    rows = client.classify(noise(3)).scores
    assert np.array_equal(client.classify(noise(3).reshape(3, 784)).scores, rows)
    assert np.allclose(client.classify(noise(3)[1]).scores, rows[1:2], atol=1e-6)


def test_a_stream_of_batches_is_scored_in_order_and_lazily(client, expected, noise):
    """Batches are taken only as requests become free; stopping early sends no more."""
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
        ([[1, 2]], "got int64"),
    ],
)
def test_bitmaps_of_another_kind_are_refused_before_sending(client, bitmaps, message):
    """What was expected and what came."""
    with pytest.raises(RequestRefused, match=message):
        client.classify(bitmaps)


def test_the_servers_refusals_are_typed(client, noise):
    """The server's own words, in an exception to catch by name."""
    with pytest.raises(RequestRefused, match=r"top_k must be 0\.\.3"):
        client.classify(noise(1), top_k=4)
    with pytest.raises(ModelNotFound, match="there are: tiny"):
        client.classify(noise(1), model_name="zebra")
    with pytest.raises(ModelNotFound):
        client.model("tiny", "9")


def test_models_and_health_are_told(client):
    """The default model, its limits and labels; SERVING."""
    model = client.model()
    assert [model] == client.models()
    assert (model.name, model.labels, model.is_default, model.max_request_rows) == ("tiny", LABELS, True, 16384)
    assert client.health() == client.health("sketchbatch.v1.ClassifierService") == "SERVING"
    assert client.health("no.such.Service") == "SERVICE_UNKNOWN"


class Flaky(classifier_pb2_grpc.ClassifierServiceServicer):
    """A real server that fails as it is told to, then answers; it counts what it was asked."""

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
    """A client of such a server, in a hurry to retry."""
    servicer = Flaky(*failures)
    server = grpc.server(futures.ThreadPoolExecutor(4))
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    retry = RetryPolicy(first_backoff_s=0.001)
    with Client(f"127.0.0.1:{port}", **{"retry": retry, "timeout_s": 5.0} | options) as client:
        yield client, servicer
    server.stop(None).wait()


FULL, DRAINING, STOPPING = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,  # what a server answers whose socket has just closed
)


@pytest.mark.parametrize("failures", [[(DRAINING, None)] * 9, [(FULL, "1")] * 20, [(STOPPING, None)] * 3])
def test_what_may_pass_is_tried_again(noise, failures):
    """A server that has answered before is waited for; a full one is asked as often as it says, in time."""
    with flaky(*failures) as (client, server):
        assert client.classify(noise(1), top_k=1).label.tolist() == ["a"]
    assert server.calls == len(failures) + 1


@pytest.mark.parametrize(
    ("failures", "error", "calls"),
    [
        ([(FULL, None)] * 9, Overloaded, 1),  # too large a message: no advice, no second attempt
        ([(FULL, "-1")] * 9, Overloaded, 1),  # the protocol's word for: do not retry
        ([(FULL, "60000")], Overloaded, 1),  # later than the deadline
        ([(grpc.StatusCode.INTERNAL, None)] * 9, ServerFailed, 1),
        ([(grpc.StatusCode.INVALID_ARGUMENT, None)] * 9, RequestRefused, 1),
        ([(grpc.StatusCode.UNAUTHENTICATED, None)] * 9, Unauthenticated, 1),
        ([(grpc.StatusCode.PERMISSION_DENIED, None)] * 9, Unauthenticated, 1),
    ],
)
def test_what_will_not_pass_is_said_at_once(noise, failures, error, calls):
    """No attempt is made that cannot help."""
    with flaky(*failures) as (client, server), pytest.raises(error):
        client.classify(noise(1))
    assert server.calls == calls


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"retry": RetryPolicy(patience_s=0, first_backoff_s=0.001)}, 5),
        (
            {"retry": RetryPolicy(patience_s=0.2, max_attempts=1, first_backoff_s=0.02, max_backoff_s=0.02)},
            range(8, 22),
        ),
        ({"retry": RetryPolicy(first_backoff_s=0.02, max_backoff_s=0.02), "timeout_s": 0.2}, range(8, 22)),
    ],
)
def test_patience_with_a_server_that_has_gone_has_an_end(noise, options, calls):
    """After `patience_s` or `timeout_s`, whichever is first; `max_attempts` are made in any case."""
    ends = (Unavailable, DeadlineExceeded)  # the second where the time runs out in the midst of an attempt
    with flaky(*[(DRAINING, None)] * 99, **options) as (client, server), pytest.raises(ends, match="no answer"):
        client.classify(noise(1))
    assert server.calls == calls or server.calls in calls


def test_pushback_is_waited_for(noise):
    """The server's advice in milliseconds is kept."""
    with flaky((FULL, "150")) as (client, _):
        started_at = time.monotonic()
        client.classify(noise(1), top_k=1)
        assert time.monotonic() - started_at >= 0.15


def test_clients_pushed_back_together_do_not_come_back_together(noise):
    """None before its time, and no two of them at once."""
    error = grpc.RpcError()
    error.code = lambda: FULL
    error.trailing_metadata = lambda: (("grpc-retry-pushback-ms", "100"),)
    delays = {RetryPolicy().delay_s(error, 1) for _ in range(20)}
    assert len(delays) == 20
    assert 0.1 <= min(delays) < max(delays) <= 0.15


def test_a_client_that_was_closed_says_so(client, noise):
    """Not by an error of gRPC's."""
    client.classify(noise(1))
    client.close()
    with pytest.raises(Unavailable, match="the client was closed"):
        client.classify(noise(1))


def test_every_error_stands_in_the_tree():
    """The one that is drawn in `errors`, with what to do about it."""
    assert all(f"── {each.__name__} " in errors.__doc__ for each in SketchbatchError.__subclasses__())
    assert len(SketchbatchError.__subclasses__()) == errors.__doc__.count("── ")


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(tiny_service, noise, monkeypatch):
    """An https_proxy in the environment is for the world outside."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with Client(tiny_service.address) as client:
        assert len(client.classify(noise(2))) == 2


def test_requests_are_cut_to_what_the_service_allows(start_service, tiny_model, noise):
    """A service with a smaller limit than our requests is no error."""
    service = start_service(tiny_model, "--max-request-rows", "50")
    with Client(service.address, rows_per_request=1024) as client:
        assert len(client.classify(noise(333))) == 333


class FailsAfter:
    """Watches a job, and has the server break once some rows are done."""

    def __init__(self, server):
        self._server = server

    def opens(self, source):
        pass

    def begins(self, rows, rows_done):
        self.rows_done = rows_done

    def advances(self, rows):
        """The part that has these rows is kept before the next request's answer is looked at."""
        self._server.failures.append((grpc.StatusCode.INTERNAL, None))


def test_a_scoring_run_that_fails_midway_keeps_what_is_finished(noise, tmp_path):
    """No output, whole or partial; the error is the server's; the next run goes on after the last part."""
    np.save(tmp_path / "a.npy", noise(3))
    order = ScoreJob(inputs=[str(tmp_path / "a.npy")], part_rows=1)
    with flaky(rows_per_request=1, in_flight=1) as (client, server):
        watch = FailsAfter(server)
        with pytest.raises(ServerFailed):
            write_scores(client, order, tmp_path / "o.csv", watch)
        assert not (tmp_path / "o.csv").exists()
        server.failures.clear()
        watch.advances = lambda rows: None
        assert write_scores(client, order, tmp_path / "o.csv", watch).rows == 3
        assert watch.rows_done > 0


def test_leaving_early_does_not_wait_for_requests_under_way(noise):
    """A caller that stops, for Ctrl-C say, is not held by a server that is slow to answer."""
    with flaky((FULL, "3000")) as (client, _):
        batches = iter([noise(1), noise(1), noise(1), noise(1), noise(1)])
        results = client.score(batches, top_k=1)
        started_at = time.monotonic()
        results.close()
        assert time.monotonic() - started_at < 1


def test_nobody_waits_for_ever(noise):
    """A server that accepts and never answers ends in DeadlineExceeded; no server at all, in Unavailable."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with Client(address, timeout_s=0.3) as client, pytest.raises((DeadlineExceeded, Unavailable)):
            client.classify(noise(1))
    with (
        Client(address, retry=RetryPolicy(max_attempts=2, first_backoff_s=0.01)) as client,
        pytest.raises(Unavailable, match=f"no answer from {address} in 2 attempts"),
    ):
        client.classify(noise(1))
