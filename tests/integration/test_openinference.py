"""Unmodified clients of other servers, each in one process with ours, against the real service."""

import json
import os
import re
import subprocess

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

ROWS = 5


@pytest.fixture(scope="module")
def bitmaps() -> np.ndarray:
    """The rows that every client asks about."""
    return np.random.default_rng(5).integers(0, 256, (ROWS, 28, 28), np.uint8)


@pytest.fixture(scope="module")
def expected(bitmaps, tiny_model) -> list:
    """What ONNX Runtime itself says of them."""
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"bitmaps": bitmaps})[0].tolist()


@pytest.fixture(scope="module")
def run_session(tiny_service, bitmaps, root, tmp_path_factory):
    """Runs one of tests/openinference/ in the environment of the clients; gives what it printed."""
    python = root / ".tools/openinference/bin/python"
    assert python.exists(), "tritonclient and kserve are not installed: make setup"
    file = tmp_path_factory.mktemp("openinference") / "bitmaps.npy"
    np.save(file, bitmaps)

    def run(script: str) -> dict:
        words = [python, root / "tests/openinference" / script, tiny_service.address, file]
        paths = os.pathsep.join([str(root / "protos"), str(root / "client")])
        finished = subprocess.run(
            words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, timeout=60
        )
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)

    return run


@pytest.fixture(scope="module")
def triton(run_session) -> dict:
    """What tritonclient heard."""
    return run_session("tritonclient_session.py")


@pytest.fixture(scope="module")
def kserve(run_session) -> dict:
    """What kserve's client heard."""
    return run_session("kserve_session.py")


@pytest.mark.timeout(60)
def test_tritonclient_and_ours_in_one_process_get_the_scores_of_onnx_runtime(triton, expected):
    """Bytes, floats, flat rows and compressed bit for bit; by callback, by asyncio and over a stream, too."""
    for way in ("ours", "uint8", "fp32", "flat", "compressed"):
        assert triton[way] == expected, way
    ids, streamed, are_final = zip(*triton["aio_stream"], strict=True)
    for merged in (triton["async"], triton["aio"], streamed):
        assert np.allclose(merged, expected, atol=1e-6)
    assert triton["id"] == "number 7"
    assert (ids, are_final) == (tuple("01234"), (True,) * ROWS)


@pytest.mark.timeout(60)
def test_kserves_client_and_ours_in_one_process_get_the_scores_of_onnx_runtime(kserve, expected):
    """Bit for bit: numbers one by one are answered so, bytes by bytes."""
    for way in ("ours", "typed", "raw", "fp32"):
        assert kserve[way] == expected, way
    assert kserve["typed_data"] == np.ravel(expected).tolist()
    assert kserve["ready"] == [True, True, True]
    assert (kserve["id"], kserve["model"]) == ("number 7", ["tiny", "1"])
    assert kserve["refused"] == ["INVALID_ARGUMENT", "inputs[0].contents must be 0..255 for UINT8, got 256"]


def test_a_classification_names_the_best_classes_first(triton, kserve, expected):
    """SCORE:INDEX:LABEL, as Triton writes it."""
    labels = ("ant", "bee", "cow")
    best = [
        [f"{row[place]:.6f}:{place}:{labels[place]}" for place in np.argsort(row)[::-1][:2].tolist()]
        for row in expected
    ]
    assert triton["best"] == best
    assert kserve["best"] == [first for first, _ in best]


def test_a_bad_message_of_tritonclients_stream_harms_no_other(triton, expected):
    """It is answered in its turn, by the status and message that ModelInfer would give."""
    error = (
        "INVALID_ARGUMENT: inputs[0].shape must be [rows, 28, 28], [rows, 28, 28, 1] or [rows, 784], got [5, 27, 28]"
    )
    assert [answer[0] for answer in triton["stream"]] == ["a", "error", "c"]
    assert triton["stream"][1][1] == error
    assert np.allclose(triton["stream"][0][1] + triton["stream"][2][1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "status", "message"),
    [
        ("name", "INVALID_ARGUMENT", "inputs must be one tensor, bitmaps, got ['image']"),
        ("datatype", "INVALID_ARGUMENT", "inputs[0].datatype must be UINT8 (0 to 255) or FP32 (0 to 1), got 'INT32'"),
        ("range", "INVALID_ARGUMENT", "divide grey levels by 255), got 255"),
        ("model", "NOT_FOUND", "no model 'zebra'; there are: tiny (version 1)"),
        ("version", "NOT_FOUND", "no model 'tiny' version '9'; there are: tiny (version 1)"),
        ("load", "UNIMPLEMENTED", ""),
    ],
)
def test_what_can_never_succeed_is_refused_as_our_own_protocol_does(triton, wrong, status, message):
    """With the status of the table, and what was expected and what came."""
    assert triton["refused"][wrong][0] == f"StatusCode.{status}"
    assert message in triton["refused"][wrong][1]


def test_the_service_describes_itself_and_its_models(triton):
    """Names, tensors, limits and labels, as tritonclient reads them."""
    about = triton["about"]
    assert about["ready"] == [True, True, True]
    assert about["unknown_ready"] is False
    assert about["server"]["name"] == "sketchbatch"
    assert {"classification", "statistics", "model_configuration"} <= set(about["server"]["extensions"])
    assert about["metadata"] == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "bitmaps", "datatype": "UINT8", "shape": ["-1", "28", "28"]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": ["-1", "3"]}],
    }
    assert about["config"]["max_batch_size"] == 16384
    assert "dynamic_batching" in about["config"]
    assert json.loads(about["config"]["parameters"]["labels"]["string_value"]) == ["ant", "bee", "cow"]
    assert about["index"] == [{"name": "tiny", "version": "1", "state": "READY"}]


def test_our_field_numbers_are_the_protocols(triton, kserve):
    """Triton's file and kserve's agree with ours on every message, field and value they share with it."""
    assert triton["differences"] == kserve["differences"] == []


def test_reflection_shows_the_protocol_by_its_own_name(tiny_service):
    """Grpcurl calls it without a .proto, although our descriptors have another package."""
    with grpc.insecure_channel(tiny_service.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    assert file.package == "inference"
    infer = next(method for method in file.service[0].method if method.name == "ModelInfer")
    assert infer.input_type == ".inference.ModelInferRequest"


@pytest.mark.timeout(60)
def test_the_examples_of_the_documentation_run(start_service, root, tmp_path):
    """As they stand, but for the port."""
    service = start_service(root / "models", "--default-model", "bear-cat-dog")
    page = (root / "docs/open-inference-protocol.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        words = [root / ".tools/openinference/bin/python", "-c", example.replace("localhost:50051", service.address)]
        finished = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=30)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.startswith("["), finished.stdout
