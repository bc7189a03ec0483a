"""Test inputs that harmed the service when fuzzing found them; tests/fuzz/FINDINGS.md lists all findings."""

import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx_models import write_model
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch_service.engines.cpu import open_session
from sketchbatch_service.errors import ModelRefused
from sketchbatch_service.models.artifact import read_artifact

pytestmark = [pytest.mark.both_transports]


@pytest.fixture(scope="module")
def service(start_service, tiny_model):
    """Start a service that has a probe port and a metrics port."""
    return start_service(tiny_model, "--probe-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")


def test_a_call_whose_path_is_not_utf8_does_not_stop_the_probe_port(service, root):
    """A call whose path is not UTF-8 does not stop the probe port, so that Kubernetes does not restart the service.

    On the transport aio, grpcio's own server fails, and the service starts another. Until this server listens, calls
    end with CANCELLED or UNAVAILABLE.
    """
    host, _, port = service.probe_address.rpartition(":")
    for _ in range(3):
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall((root / "tests/fuzz/corpus/grpc/path-is-no-utf8").read_bytes())
            connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while connection.recv(1 << 16):
                    pass
        assert _check_health(service.probe_address) == health_pb2.HealthCheckResponse.SERVING


def _check_health(address):
    """Return the health status; for 15 seconds, repeat a call that ended because the server failed."""
    give_up = time.monotonic() + 15
    while True:
        try:
            with grpc.insecure_channel(address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                return check(health_pb2.HealthCheckRequest(), timeout=15, wait_for_ready=True).status
        except grpc.RpcError as error:
            was_cut_off = error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
            if not was_cut_off or time.monotonic() > give_up:
                raise


def test_an_accept_header_that_cannot_be_read_is_400(service):
    """A request for the metrics with an invalid Accept header receives status 200 or 400, and a valid one succeeds."""
    url = f"http://{service.metrics_address}/metrics"
    for version in ("x", "1", "true"):
        headers = {"Accept": f"application/openmetrics-text; version={version}"}
        try:
            status = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30).status
        except urllib.error.HTTPError as error:
            status = error.code
            error.close()
        assert status in (200, 400), version
    assert urllib.request.urlopen(url, timeout=30).status == 200


def test_an_error_about_long_names_arrives(service):
    """An error message that quotes long names is shortened, so that the client receives its status.

    gRPC replaces the status of a response by RESOURCE_EXHAUSTED if the response has more than 8 KiB of metadata.
    """
    request = oip.ModelInferRequest()
    for _ in range(12):
        request.inputs.add(name="\u2603" * 200)
    with grpc.insecure_channel(service.address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", oip.ModelInferRequest.SerializeToString
        )
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("inputs must be one tensor, bitmaps, got ['\u2603")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("metrics", '{"rows": ' + "9" * 5000 + "}"),
        ("metrics", '{"rows": ' + "9" * 400 + "}"),
        ("metrics", '{"deep": ' + "[" * 60 + "]" * 60 + "}"),
        ("labels", '["\\ud800", "b", "c"]'),
    ],
)
def test_a_model_with_metadata_that_no_message_can_contain_is_refused(tmp_path, key, text):
    """A model is refused if a protobuf message cannot contain its metadata.

    Otherwise ListModels and GetModel would fail for all models.
    """
    path = write_model(tmp_path / "model.onnx", metadata={f"sketchbatch.{key}": text}, labels=None)
    if key == "metrics":
        path = write_model(tmp_path / "model.onnx", metadata={f"sketchbatch.{key}": text})
    with pytest.raises(ModelRefused, match=f"sketchbatch.{key} must be (JSON|what a message can carry)"):
        read_artifact(path, open_session(path))
