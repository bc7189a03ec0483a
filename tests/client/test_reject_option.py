"""Drawings whose highest score is below a stored threshold are rejected by clients, never by the service."""

import grpc
import pytest
from onnx_models import write_model
from sketchbatch.openinference.v2 import open_inference_pb2
from sketchbatch.rejection import KEY, Rejection, RejectionThreshold, decode, encode
from sketchbatch_client import Client

STORED = Rejection(
    rows=900,
    unknown_rows=500,
    auroc=0.875,
    thresholds=(
        RejectionThreshold(coverage=0.95, score=0.375, accuracy=0.75, unknown_rejected=0.25),
        RejectionThreshold(coverage=0.5, score=0.4375, accuracy=0.9375, unknown_rejected=0.5),
    ),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write a repository of one model whose file stores thresholds, and one whose file stores none."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "able" / "1" / "model.onnx", metadata={KEY: encode(STORED)})
    write_model(folder / "plain" / "1" / "model.onnx", seed=8)
    return folder


@pytest.fixture(scope="module")
def service(start_service, models):
    """Serve both models."""
    return start_service(models, "--default-model", "able")


def test_the_thresholds_of_a_model_file_reach_the_client(service):
    """GetModel and ListModels return every digit of the thresholds; a file without thresholds has none."""
    with Client(service.address) as client:
        assert client.model().rejection == STORED
        assert [each.rejection for each in client.models()] == [STORED, None]
        assert client.model("plain").rejection is None
    with grpc.insecure_channel(service.address) as channel:
        config = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelConfig",
            open_inference_pb2.ModelConfigRequest.SerializeToString,
            open_inference_pb2.ModelConfigResponse.FromString,
        )
        able, plain = (
            config(open_inference_pb2.ModelConfigRequest(name=name)).config.parameters for name in ("able", "plain")
        )
        assert decode(able["rejection"].string_value) == STORED
        assert "rejection" not in plain


def test_model_shows_the_thresholds(sketchbatch, service):
    """`sketchbatch model` lists the AUROC and each threshold with its effect, and nothing for a model without them."""
    shown = sketchbatch("model", "--server", service.address).out
    able, plain = shown.split("plain version 1")
    rows = [" ".join(line.split()) for line in able.splitlines()]
    assert "unknown drawings AUROC 0.875" in rows
    assert "coverage 0.95 score 0.375: accuracy 0.75, unknown rejected 0.25" in rows
    assert "AUROC" not in plain
