"""Call a real service with the unmodified clients of the packages tritonclient and kserve.

Each of these clients runs in a process in which our own client runs, too. So the tests also show that a program can use
both.
"""

import hashlib
import json
import os
import subprocess

import grpc
import numpy as np
import onnxruntime as ort
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.both_transports,
]  # the time limit is high because the fixtures import large packages in new processes

ROWS = 5


@pytest.fixture(scope="session")
def bitmaps() -> np.ndarray:
    """Return the bitmaps that every client sends."""
    return np.random.default_rng(5).integers(0, 256, (ROWS, 28, 28), np.uint8)


@pytest.fixture(scope="module")
def expected(bitmaps, tiny_model) -> list:
    """Return the scores that ONNX Runtime, called directly, computes for the bitmaps."""
    session = ort.InferenceSession(tiny_model, providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"bitmaps": bitmaps})[0].tolist()


@pytest.fixture(scope="session")
def run_session(tiny_services, bitmaps, root, tmp_path_factory):
    """Return a function that runs a script of tests/openinference/, and returns the responses by transport.

    The script runs with the Python of .tools/openinference, in which tritonclient and kserve are installed. It runs
    once and calls the services of both transports, because the import of these packages takes seconds.
    """
    python = root / ".tools/openinference/bin/python"
    assert python.exists(), "tritonclient and kserve are not installed: make setup"
    file = tmp_path_factory.mktemp("openinference") / "bitmaps.npy"
    np.save(file, bitmaps)
    addresses = {transport: tiny_services(transport).address for transport in ("core", "aio")}

    def run(script: str) -> dict[str, dict]:
        words = [python, root / "tests/openinference" / script, file, *addresses.values()]
        paths = os.pathsep.join([str(root / "protos"), str(root / "client")])
        finished = subprocess.run(
            words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, timeout=120
        )
        assert finished.returncode == 0, finished.stderr
        return dict(zip(addresses, json.loads(finished.stdout), strict=True))

    return run


@pytest.fixture(scope="session")
def triton_responses(run_session) -> dict[str, dict]:
    """Return the responses that tritonclient received, by transport."""
    return run_session("tritonclient_session.py")


@pytest.fixture(scope="session")
def kserve_responses(run_session) -> dict[str, dict]:
    """Return the responses that kserve's client received, by transport."""
    return run_session("kserve_session.py")


@pytest.fixture
def triton(triton_responses, transport) -> dict:
    """Return the responses that tritonclient received."""
    return triton_responses[transport]


@pytest.fixture
def kserve(kserve_responses, transport) -> dict:
    """Return the responses that kserve's client received."""
    return kserve_responses[transport]


def test_tritonclient_receives_the_scores_of_onnx_runtime(triton, expected):
    """The scores that tritonclient receives for one request with all rows are bit-identical to ONNX Runtime's.

    If each row is a request of its own, the rows run in batches of other sizes. The scores may then differ by at most
    1e-6.
    """
    for encoding in ("ours", "uint8", "fp32", "flat", "compressed"):
        assert triton[encoding] == expected, encoding
    ids, streamed, are_final = zip(*triton["aio_stream"], strict=True)
    for merged in (triton["async"], triton["aio"], streamed):
        assert np.allclose(merged, expected, atol=1e-6)
    assert triton["id"] == "number 7"
    assert (ids, are_final) == (tuple("01234"), (True,) * ROWS)


def test_kserves_client_receives_the_scores_of_onnx_runtime(kserve, expected):
    """The scores that kserve's client receives are bit-identical to ONNX Runtime's.

    A response has the encoding of its request: typed numbers or raw bytes.
    """
    for encoding in ("ours", "typed", "raw", "fp32"):
        assert kserve[encoding] == expected, encoding
    assert kserve["typed_data"] == np.ravel(expected).tolist()
    assert kserve["ready"] == [True, True, True]
    assert (kserve["id"], kserve["model"]) == ("number 7", ["tiny", "1"])
    assert kserve["rejected"] == ["INVALID_ARGUMENT", "inputs[0].contents must be 0..255 for UINT8, got 256"]


def test_both_clients_receive_the_digest_of_the_model_file(triton, kserve, tiny_model):
    """A response has the parameter `digest`, the SHA-256 of the model file, for tritonclient and kserve's client."""
    assert triton["digest"] == kserve["digest"] == hashlib.sha256(tiny_model.read_bytes()).hexdigest()


def test_a_classification_names_the_best_classes_first(triton, kserve, expected):
    """A classification lists the best classes first, each in Triton's format SCORE:INDEX:LABEL."""
    labels = ("ant", "bee", "cow")
    best = [
        [f"{row[place]:.6f}:{place}:{labels[place]}" for place in np.argsort(row)[::-1][:2].tolist()]
        for row in expected
    ]
    assert triton["best"] == best
    assert kserve["best"] == [first for first, _ in best]


def test_an_invalid_message_of_a_stream_affects_no_other_message(triton, expected):
    """If the second of three messages of a stream is invalid, only this message receives an error.

    The responses are in order, and the error has the status and the message that ModelInfer would return.
    """
    shapes = "[rows, 28, 28], [rows, 28, 28, 1], [rows, 1, 28, 28] or [rows, 784]"
    error = f"INVALID_ARGUMENT: inputs[0].shape must be {shapes}, got [5, 27, 28]"
    assert [response[0] for response in triton["stream"]] == ["a", "error", "c"]
    assert triton["stream"][1][1] == error
    assert np.allclose(triton["stream"][0][1] + triton["stream"][2][1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        ("name", "INVALID_ARGUMENT", "inputs must be one tensor, bitmaps, got ['image']"),
        ("datatype", "INVALID_ARGUMENT", "inputs[0].datatype must be UINT8 (0 to 255) or FP32 (0 to 1), got 'INT32'"),
        ("range", "INVALID_ARGUMENT", "divide grey levels by 255), got 255"),
        ("model", "NOT_FOUND", "no model 'zebra'; there are: tiny (version 1)"),
        ("version", "NOT_FOUND", "no model 'tiny' version '9'; there are: tiny (version 1)"),
        ("load", "UNIMPLEMENTED", ""),
    ],
)
def test_an_invalid_request_is_rejected_with_the_status_of_our_own_protocol(triton, error, status, message):
    """An invalid request receives the status that our own protocol would return for the same error.

    The error message contains the expected and the received value.
    """
    assert triton["rejected"][error][0] == f"StatusCode.{status}"
    assert message in triton["rejected"][error][1]


def test_the_service_describes_itself_and_its_models(triton):
    """Tritonclient reads the names, tensors, limits and labels with which the service describes its models."""
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


def test_our_field_numbers_are_those_of_the_protocol(triton, kserve):
    """A field or an enum value that our .proto file shares with Triton's or kserve's has the same definition there."""
    assert triton["differences"] == kserve["differences"] == []


def test_reflection_describes_the_protocol_under_its_own_name(tiny_service):
    """Reflection describes the protocol's package as `inference`, so that grpcurl can call it without a .proto file.

    The generated code in protos/ has another package name, which reflection must not return.
    """
    with grpc.insecure_channel(tiny_service.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in database.get_services()
        file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    assert file.package == "inference"
    infer = next(method for method in file.service[0].method if method.name == "ModelInfer")
    assert infer.input_type == ".inference.ModelInferRequest"
