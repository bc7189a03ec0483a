"""Test a service process: the shipped model, start, stop, and scores that equal those of ONNX Runtime."""

import csv
import json
import os
import queue
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import TensorProto
from onnx_models import write_model
from prometheus_client.parser import text_string_to_metric_families
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import Client

pytestmark = [pytest.mark.timeout(60), pytest.mark.both_transports]  # most tests start a service

FIVE = ["accuracy", "balanced_accuracy", "specificity", "matthews_corrcoef", "jaccard"]
NO_LIMIT = ("--drain-s", "3600")
"""Flags with a drain time of an hour: if the service waited for the end of this time, the test would time out."""
SLOW = ("--threads", "1", "--max-batch-rows", "1", "--metrics-address", "127.0.0.1:0")
"""Flags with which a service needs a second for 4,000 rows, and has a metrics page with the number of queued rows."""


@pytest.fixture(scope="module")
def shipped(start_service: Callable, root):
    """Start a service with the shipped models on a free port."""
    return start_service(root / "models", "--default-model", "bear-cat-dog")


def test_the_shipped_model_knows_bears_cats_and_dogs(shipped):
    """The shipped model recognises bears, cats and dogs, and its file names its labels, licence and metrics."""
    with Client(shipped.address) as client:
        model = client.model()
    assert (model.name, model.version, model.labels) == ("bear-cat-dog", "2", ("bear", "cat", "dog"))
    assert "CC BY 4.0" in model.licence
    assert model.metrics["accuracy"] >= 0.74
    assert model.metrics["parity_max_difference"] <= 1e-4
    assert set(FIVE) <= set(model.metrics)


@pytest.mark.real_drawings
def test_9000_real_drawings_get_the_labels_of_onnx_runtime_in_order(shipped, quickdraw, root, run_command, tmp_path):
    """`sketchbatch score` writes the labels and scores that ONNX Runtime computes for 9,000 real drawings, in order."""
    files = [quickdraw / "numpy_bitmap" / f"{label}.npy" for label in ("bear", "cat", "dog")]
    words = ["score", *files, "--server", shipped.address, "--output", tmp_path / "scores.csv", "--all-scores"]
    finished = run_command("sketchbatch", *words)
    assert finished.returncode == 0, finished.stderr
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    session = ort.InferenceSession(root / "models/bear-cat-dog/2/model.onnx", providers=["CPUExecutionProvider"])
    bitmaps = np.concatenate([np.load(file) for file in files]).reshape(-1, 28, 28)
    scores = np.concatenate(
        [session.run(["scores"], {"bitmaps": bitmaps[i : i + 500]})[0] for i in range(0, len(bitmaps), 500)]
    )
    labels = np.array(["bear", "cat", "dog"])
    assert len(lines) == 9000
    assert [line["label"] for line in lines] == labels[scores.argmax(axis=1)].tolist()
    assert [(line["source"], int(line["row"])) for line in lines] == [
        (str(file), row) for file in files for row in range(len(np.load(file, mmap_mode="r")))
    ]
    served = np.array([[float(line[f"score_{label}"]) for label in labels] for line in lines])
    assert np.allclose(served, scores, atol=1e-5)


@pytest.mark.real_drawings
def test_evaluate_finds_the_models_own_accuracy_again(shipped, quickdraw, run_command, tmp_path):
    """`evaluate` measures an accuracy above 0.8 on the real drawings, and skips files of unknown labels.

    The accuracy is higher than on held-out drawings, because most of these drawings were training data.
    """
    words = ["evaluate", quickdraw, "--server", shipped.address, "--json", tmp_path / "m.json", "--ignore-others"]
    finished = run_command("sketchbatch", *words)
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["rows"] == 9000
    assert metrics["accuracy"] > 0.8
    assert len(metrics["passed_over"]) == 342


def test_health_follows_the_service(start_service, tiny_model):
    """Health checks report SERVING while the service runs, and a health watch receives NOT_SERVING when it stops.

    An open health watch does not delay the end of the process.
    """
    service = start_service(tiny_model, *NO_LIMIT)
    with grpc.insecure_channel(service.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        name = "sketchbatch.v1.ClassifierService"
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert set(stub.List(health_pb2.HealthListRequest()).statuses) == {"", name, "inference.GRPCInferenceService"}
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        service.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert list(watch) == []
        service.process.wait()  # an open Watch does not delay the end of the process until --drain-s has passed
        code, log = service.stop()
    assert code == 0
    assert [event["message"] for event in log] == ["stopping", "draining", "stopped"]


def test_reflection_can_be_turned_off(start_service, tiny_service, tiny_model):
    """Reflection lists the services, and with --no-reflection a reflection call receives UNIMPLEMENTED."""
    with grpc.insecure_channel(tiny_service.address) as channel:
        found = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"sketchbatch.v1.ClassifierService", "grpc.health.v1.Health"} <= set(found)
    closed = start_service(tiny_model, "--no-reflection")
    with grpc.insecure_channel(closed.address) as channel, pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@contextmanager
def paused_in_flight(service, calls: int, bitmaps: np.ndarray) -> Iterator[list[grpc.Future]]:
    """Send `calls` calls, and pause the process of the service while at least half of their rows are in the queue.

    The service must be started with the flags `SLOW`, so that the queue fills faster than it drains. The context yields
    the calls. When the context ends, the process continues, and receives the signals that were sent during the pause.
    """
    with grpc.insecure_channel(service.address) as channel:
        classify = classifier_pb2_grpc.ClassifierServiceStub(channel).Classify.future
        request = pb.ClassifyRequest(bitmaps=bitmaps.tobytes(), top_k=1)
        while True:
            sent = [classify(request) for _ in range(calls)]
            while not any(call.done() for call in sent) and queued_rows(service) < calls * len(bitmaps) / 2:
                pass
            service.process.send_signal(signal.SIGSTOP)
            if not any(call.done() for call in sent):
                break
            # a call ended before the service was paused, so try again
            service.process.send_signal(signal.SIGCONT)
            for call in sent:
                call.exception()  # wait for the end of the call, so that the queue is empty before the next attempt
        try:
            yield sent
        finally:
            service.process.send_signal(signal.SIGCONT)
            for call in sent:
                call.exception()  # wait for the end of the call


@pytest.fixture(scope="module")
def shipped_model(root):
    """Return the file of a shipped model, whose model calls take much longer than those of the tiny model."""
    return root / "models" / "bear-cat-dog" / "2" / "model.onnx"


def queued_rows(service) -> float:
    """Return the number of rows that wait for a model call."""
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    return sum(each.value for family in families for each in family.samples if each.name == "sketchbatch_queued_rows")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_accepted_calls_are_answered_before_the_service_stops(start_service, shipped_model, noise, how):
    """A call that is in flight when SIGTERM or SIGINT arrives receives its response before the service stops.

    The log contains the stages of the stop.
    """
    service = start_service(shipped_model, *SLOW, *NO_LIMIT)
    with paused_in_flight(service, 1, noise(4000)) as (call,):
        service.process.send_signal(how)
    assert call.result().rows == 4000
    service.process.wait()
    code, log = service.stop()
    assert code == 0
    assert [event["message"] for event in log] == ["stopping", "draining", "stopped"]


def test_calls_are_accepted_during_the_lame_duck_time(start_service, tiny_model, noise):
    """During the lame duck time, health reports NOT_SERVING and calls are answered.

    A second signal ends the lame duck time.
    """
    service = start_service(tiny_model, "--lame-duck-s", "3600")
    with grpc.insecure_channel(service.address) as channel:
        classify = classifier_pb2_grpc.ClassifierServiceStub(channel).Classify
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        service.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        request = pb.ClassifyRequest(bitmaps=noise(1).tobytes())
        assert all(classify(request).rows == 1 for _ in range(20))
        service.process.terminate()
        while not (error := failure(classify, request)):
            pass
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert service.stop()[0] == 0


def failure(rpc, request):
    """Return the error of a call, or None if the call succeeds."""
    try:
        rpc(request)
    except grpc.RpcError as exc:
        return exc


def test_the_lame_duck_time_ends_by_itself(start_service, tiny_model):
    """Without a second signal, the lame duck time ends after `--lame-duck-s`, and draining begins."""
    service = start_service(tiny_model, "--lame-duck-s", "0.5")
    service.process.terminate()
    service.process.wait()
    code, log = service.stop()
    times = [datetime.fromisoformat(event["time"]) for event in log if event["message"] in ("stopping", "draining")]
    assert (code, len(times)) == (0, 2)
    assert (times[1] - times[0]).total_seconds() > 0.4


def test_a_second_signal_cancels_calls(start_service, shipped_model, noise):
    """After a second signal, calls in flight end with UNAVAILABLE, and the process ends at once.

    The process does not wait until `--drain-s` has passed.
    """
    service = start_service(shipped_model, "--lame-duck-s", "3600", *SLOW, *NO_LIMIT)
    service.process.terminate()
    service.wait_for("stopping")  # without this wait the kernel could merge the two signals
    with paused_in_flight(service, 8, noise(1000)) as calls:
        service.process.terminate()
    codes = {call.code() for call in calls}
    assert grpc.StatusCode.UNAVAILABLE in codes
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}
    service.process.wait()
    code, log = service.stop()
    assert code == 0
    assert log[-1]["was_hurried"]


def test_repeated_signals_change_nothing(start_service, tiny_model):
    """The exit code of the service is 0, even if SIGTERM arrives many times."""
    service = start_service(tiny_model)
    while service.process.poll() is None:
        service.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            service.process.wait(0.001)
    assert service.stop()[0] == 0


def test_an_open_stream_ends_when_the_service_stops(start_service, tiny_model):
    """When the service stops, an open stream ends with UNAVAILABLE, after its messages have received responses.

    The service does not wait until `--drain-s` has passed.
    """
    service = start_service(tiny_model, *NO_LIMIT)
    more = queue.Queue()
    more.put(pb.ClassifyStreamRequest(bitmaps=bytes(784), top_k=1))
    with grpc.insecure_channel(service.address) as channel:
        answers = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream(iter(more.get, None))
        assert next(answers).rows == 1
        assert service.stop()[0] == 0
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        more.put(None)


def test_concurrent_large_and_small_requests_receive_their_own_scores(tiny_service, tiny_model):
    """When large and small requests are concurrent, each request receives the scores of its own rows.

    The service splits large requests and joins small requests into batches.
    """
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])

    def is_right(rows: int) -> bool:
        bitmaps = np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), np.uint8)
        expected = session.run(["scores"], {"bitmaps": bitmaps})[0]
        return np.allclose(client.classify(bitmaps).scores, expected, atol=1e-6)

    with Client(tiny_service.address, rows_per_request=16384) as client, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(is_right, [1, 5000, 2, 63, 64, 65, 1000, 16384, 3] * 5))


def test_the_largest_request_fits_and_one_row_more_is_refused_clearly(tiny_service):
    """A request of 16,384 rows succeeds, and a request of 16,385 rows is rejected with INVALID_ARGUMENT.

    The message limit of gRPC is higher, so that gRPC's own error does not hide the error of the service.
    """
    with grpc.insecure_channel(tiny_service.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        assert stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784 * 16384), top_k=1)).rows == 16384
        with pytest.raises(grpc.RpcError) as caught:
            stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784 * 16385)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1..16384 rows, got 16385" in caught.value.details()


def failed_start(run_command, *flags: object) -> str:
    """Start a service that must fail to start; return the only line that it prints."""
    finished = run_command("sketchbatch-serve", "--log-level", "error", *flags)
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 1, finished.stderr
    return finished.stderr


def test_a_failed_start_is_reported_in_one_line(run_command, tmp_path, tiny_model):
    """A service that cannot start prints one line of error.

    The causes in this test are a model with a wrong input, a missing model and a missing GPU.
    """
    unfit = write_model(tmp_path / "unfit.onnx", input_type=TensorProto.FLOAT, input_shape=("n", 28, 28, 1))
    assert "input must be uint8 (N, 28, 28), got bitmaps: float32 (N, 28, 28, 1)" in failed_start(
        run_command, "--model", unfit
    )
    assert "no such model file" in failed_start(run_command, "--model", tmp_path / "none.onnx")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        assert "provider cuda was asked for" in failed_start(run_command, "--model", tiny_model, "--provider", "cuda")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not restrict processes to CPUs")
@pytest.mark.parametrize(("flags", "slots"), [((), 1), (("--threads", "3"), 3)])
def test_the_log_names_the_cpus_that_the_service_may_use(start_service, tiny_model, flags, slots):
    """A service that may use one CPU of several has one execution slot, unless the settings say otherwise.

    `taskset`, `docker --cpuset-cpus` and Kubernetes' CPU manager restrict a process in this way.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        service = start_service(tiny_model, *flags)
    finally:
        os.sched_setaffinity(0, allowed)
    assert (service.ready["cpus"], service.ready["slots"]) == (1, slots)
    code, log = service.stop()
    assert (code, [event for event in log if event["level"] not in ("info", "debug")]) == (0, [])


def test_a_used_port_is_reported_in_one_line(run_command, tiny_model, tiny_service, transport):
    """If the port is in use by another service, or by another program, the service prints one line of error."""
    words = ("--model", tiny_model, "--transport", transport, "--address")
    busy = failed_start(run_command, *words, tiny_service.address)
    assert f"cannot listen on {tiny_service.address}: the port is in use" in busy
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert "the port is in use" in failed_start(run_command, *words, address)


def test_scores_equal_those_of_onnx_runtime_however_requests_are_split_and_merged(shipped, root):
    """Concurrent requests of 1 to 4,096 rows receive scores that are bit-identical to those of ONNX Runtime."""
    random = np.random.default_rng(3)
    sizes = [1] * 40 + [2, 3, 7, 16, 17, 63, 64, 65, 127, 300, 1024, 1025, 4096]
    bitmaps = random.integers(0, 256, (sum(sizes), 28, 28), np.uint8)
    session = ort.InferenceSession(root / "models/bear-cat-dog/2/model.onnx", providers=["CPUExecutionProvider"])
    expected = np.concatenate(
        [session.run(["scores"], {"bitmaps": bitmaps[i : i + 1000]})[0] for i in range(0, len(bitmaps), 1000)]
    )
    ends = np.cumsum(sizes)
    requests = [bitmaps[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    with grpc.insecure_channel(shipped.address) as channel, ThreadPoolExecutor(16) as pool:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        order = random.permutation(len(requests))
        answers = list(pool.map(lambda n: stub.Classify(pb.ClassifyRequest(bitmaps=requests[n].tobytes())), order))
    served = np.empty_like(expected)
    for n, answer in zip(order, answers, strict=True):
        served[ends[n] - sizes[n] : ends[n]] = np.frombuffer(answer.scores, "<f4").reshape(-1, 3)
    assert np.array_equal(served, expected)


def test_100000_rows_through_the_client_equal_those_of_onnx_runtime(tiny_service, tiny_model, noise):
    """The client splits 100,000 rows into many requests, and receives scores bit-identical to ONNX Runtime's."""
    bitmaps = noise(100_000)
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    with Client(tiny_service.address) as client:
        scores = client.classify(bitmaps).scores
    assert np.array_equal(scores, session.run(["scores"], {"bitmaps": bitmaps})[0])
