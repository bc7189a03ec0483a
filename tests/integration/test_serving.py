"""The real service as a process: the shipped model, its start, its stop, and answers equal to ONNX Runtime's own."""

import csv
import json
import queue
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx import TensorProto
from onnx_models import write_model
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import Client, SketchbatchError

FIVE = ["accuracy", "balanced_accuracy", "specificity", "matthews_corrcoef", "jaccard"]


@pytest.fixture(scope="module")
def shipped(start_service: Callable, root):
    """The service as `make serve` runs it, on a free port."""
    return start_service(root / "models", "--default-model", "bear-cat-dog")


def test_the_shipped_model_knows_bears_cats_and_dogs(shipped):
    """`make serve` works at once, and the file says what it is."""
    with Client(shipped.address) as client:
        model = client.model()
    assert (model.name, model.version, model.labels) == ("bear-cat-dog", "1", ("bear", "cat", "dog"))
    assert "CC BY 4.0" in model.licence
    assert model.metrics["accuracy"] >= 0.74
    assert model.metrics["parity_max_difference"] <= 1e-4
    assert set(FIVE) <= set(model.metrics)


@pytest.mark.real_drawings
@pytest.mark.timeout(60)
def test_9000_real_drawings_get_the_labels_of_onnx_runtime_in_order(shipped, quickdraw, root, run_command, tmp_path):
    """Through files, gRPC, batching and back: nothing lost, nothing moved."""
    files = [quickdraw / "numpy_bitmap" / f"{label}.npy" for label in ("bear", "cat", "dog")]
    words = ["score", *files, "--server", shipped.address, "--output", tmp_path / "scores.csv", "--all-scores"]
    finished = run_command("sketchbatch", *words)
    assert finished.returncode == 0, finished.stderr
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    session = ort.InferenceSession(root / "models/bear-cat-dog/1/model.onnx", providers=["CPUExecutionProvider"])
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
    """On all of ../shared's drawings, most of them learned from, it does better than on those held out."""
    words = ["evaluate", quickdraw, "--server", shipped.address, "--json", tmp_path / "m.json"]
    finished = run_command("sketchbatch", *words)
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["rows"] == 9000
    assert metrics["accuracy"] > 0.8
    assert len(metrics["passed_over"]) == 342


def test_health_follows_the_service(start_service, tiny_model):
    """SERVING for the whole and for the service by name; Watch hears NOT_SERVING when it drains."""
    service = start_service(tiny_model)
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
        service.process.wait(5)  # an open watch does not hold it for drain_s
        code, log = service.stop()
    assert code == 0
    assert [event["message"] for event in log] == ["stopping", "draining", "stopped"]


def test_reflection_can_be_turned_off(start_service, tiny_service, tiny_model):
    """Grpcurl finds the services without a .proto; an operator may not want that."""
    with grpc.insecure_channel(tiny_service.address) as channel:
        found = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"sketchbatch.v1.ClassifierService", "grpc.health.v1.Health"} <= set(found)
    closed = start_service(tiny_model, "--no-reflection")
    with grpc.insecure_channel(closed.address) as channel, pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopping_answers_what_was_accepted_and_exits_with_0(start_service, root, noise, how):
    """Requests under way when the signal comes are answered; the log tells the stages."""
    service = start_service(root / "models", "--max-batch-rows", "16")
    bitmaps = noise(16384)
    with Client(service.address, rows_per_request=16384) as client, ThreadPoolExecutor() as pool:
        client.classify(bitmaps[:1])
        under_way = pool.submit(client.classify, bitmaps, top_k=1)
        time.sleep(0.2)  # it is in the model now: 16,384 rows take seconds
        assert not under_way.done()
        code, log = service.stop(how)
        assert len(under_way.result(45)) == 16384
    assert code == 0
    assert [event["message"] for event in log] == ["stopping", "draining", "stopped"]


def test_calls_are_taken_while_clients_move_away(start_service, tiny_model, noise):
    """After SIGTERM: NOT_SERVING at once, and no call fails until `--lame-duck-s` is over."""
    service = start_service(tiny_model, "--lame-duck-s", "3.0")
    with grpc.insecure_channel(service.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        service.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        left_at, answered = time.monotonic(), 0
        while not (error := failure(stub.Classify, pb.ClassifyRequest(bitmaps=noise(1).tobytes()))):
            answered += 1
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        assert 0.8 < time.monotonic() - left_at < 6  # 3, but for what the machine was busy with meanwhile
        assert answered > 10
    assert service.stop()[0] == 0


def failure(rpc, request):
    """The error that a call ends in; None = it was answered."""
    try:
        rpc(request)
    except grpc.RpcError as exc:
        return exc


@pytest.mark.timeout(60)
def test_a_second_signal_hurries(start_service, root, noise):
    """Calls under way are ended, and so is the process, long before `--drain-s`."""
    service = start_service(root / "models", "--max-batch-rows", "16", "--lame-duck-s", "30")
    with Client(service.address, rows_per_request=16384, timeout_s=5) as client, ThreadPoolExecutor() as pool:
        client.classify(noise(1))
        under_way = [pool.submit(client.classify, noise(16384)) for _ in range(3)]
        time.sleep(0.2)
        service.process.terminate()
        service.wait_for("stopping")  # else the kernel makes one signal of two
        service.process.terminate()  # over with the lame duck
        started_at = time.monotonic()
        code, log = service.stop()  # and one more changes nothing
        assert time.monotonic() - started_at < 5
        with pytest.raises(SketchbatchError):
            [each.result() for each in under_way]
    assert code == 0
    assert log[-1]["was_hurried"]


def test_signals_that_come_again_change_nothing(start_service, tiny_model):
    """Impatient supervisors send SIGTERM more than once; the drain still ends in exit code 0."""
    service = start_service(tiny_model)
    while service.process.poll() is None:
        service.process.terminate()
        time.sleep(0.001)
    assert service.stop()[0] == 0


def test_a_stream_in_the_middle_is_ended_by_the_stop(start_service, tiny_model):
    """What it sent is answered; then UNAVAILABLE, at once, although the client would go on for ever."""
    service = start_service(tiny_model)
    more = queue.Queue()
    more.put(pb.ClassifyStreamRequest(bitmaps=bytes(784), top_k=1))
    with grpc.insecure_channel(service.address) as channel:
        answers = classifier_pb2_grpc.ClassifierServiceStub(channel).ClassifyStream(iter(more.get, None))
        assert next(answers).rows == 1
        started_at = time.monotonic()
        assert service.stop()[0] == 0
        assert time.monotonic() - started_at < 5
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        more.put(None)


def test_large_and_small_requests_side_by_side_keep_their_rows(tiny_service, tiny_model, noise):
    """Splitting and merging under concurrency: every caller gets its own rows' scores."""
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])

    def ask(rows: int) -> bool:
        bitmaps = np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), np.uint8)
        expected = session.run(["scores"], {"bitmaps": bitmaps})[0]
        return np.allclose(client.classify(bitmaps).scores, expected, atol=1e-6)

    with Client(tiny_service.address, rows_per_request=16384) as client, ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, [1, 5000, 2, 63, 64, 65, 1000, 16384, 3] * 5))


def test_the_largest_request_fits_and_one_row_more_is_refused_clearly(tiny_service):
    """The receive limit follows from max_request_rows, with room for our own error to be heard."""
    with grpc.insecure_channel(tiny_service.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        assert stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784 * 16384), top_k=1)).rows == 16384
        with pytest.raises(grpc.RpcError) as caught:
            stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784 * 16385)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1..16384 rows, got 16385" in caught.value.details()


def failed_start(run_command, *flags: object) -> str:
    """The last line of a service that does not start."""
    finished = run_command("sketchbatch-serve", "--log-level", "error", *flags)
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 1, finished.stderr
    return finished.stderr


@pytest.mark.timeout(60)
def test_what_keeps_the_service_from_starting_is_one_line(run_command, tmp_path, tiny_model, tiny_service):
    """A model with the wrong input, no model, a busy port, an address that is not ours, a GPU that is not there."""
    unfit = write_model(tmp_path / "unfit.onnx", input_type=TensorProto.FLOAT, input_shape=("n", 28, 28, 1))
    assert "must be bitmaps: uint8 (N, 28, 28), got bitmaps: float32 (N, 28, 28, 1)" in failed_start(
        run_command, "--model", unfit
    )
    assert "no such model file" in failed_start(run_command, "--model", tmp_path / "none.onnx")
    busy = failed_start(run_command, "--model", tiny_model, "--address", tiny_service.address)
    assert f"cannot listen on {tiny_service.address}: the port is in use" in busy
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert "the port is in use" in failed_start(run_command, "--model", tiny_model, "--address", address)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        assert "provider cuda was asked for" in failed_start(run_command, "--model", tiny_model, "--provider", "cuda")


@pytest.mark.timeout(60)
def test_scores_are_onnx_runtimes_own_bit_for_bit_however_requests_are_split_and_merged(shipped, root):
    """From one row to tens of thousands, beside one another; a session with ONNX Runtime's defaults is the judge."""
    random = np.random.default_rng(3)
    sizes = [1] * 40 + [2, 3, 7, 16, 17, 63, 64, 65, 127, 300, 1024, 1025, 5000, 16384]
    bitmaps = random.integers(0, 256, (sum(sizes), 28, 28), np.uint8)
    session = ort.InferenceSession(root / "models/bear-cat-dog/1/model.onnx", providers=["CPUExecutionProvider"])
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


def test_100000_rows_through_the_client_are_onnx_runtimes_own_bit_for_bit(tiny_service, tiny_model, noise):
    """Cut into many requests, and those into many calls."""
    bitmaps = noise(100_000)
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    with Client(tiny_service.address) as client:
        scores = client.classify(bitmaps).scores
    assert np.array_equal(scores, session.run(["scores"], {"bitmaps": bitmaps})[0])
