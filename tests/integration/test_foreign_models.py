"""Test with real services how models from other tools are refused, served and announced."""

import subprocess

import grpc
import numpy as np
import pytest
from conftest import BIN, ROOT
from foreign_models import weights, write_model
from onnx import helper, numpy_helper
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_service.engines.parity import random_drawings

pytestmark = [pytest.mark.timeout(60), pytest.mark.both_transports]  # each test starts a service

BLANK = np.zeros((1, 28, 28), np.uint8)
INK = np.full((1, 28, 28), 255, np.uint8)


def divided_by_the_row(nodes, initializers, last):
    """Divide the pixels of each drawing by its largest pixel; a blank drawing gives 0 / 0."""
    initializers.append(numpy_helper.from_array(np.array([1]), "columns"))
    nodes.append(helper.make_node("ReduceMax", [last, "columns"], ["largest"], keepdims=1))
    nodes.append(helper.make_node("Div", [last, "largest"], ["divided"]))
    return "divided"


def failing_at_11_rows(nodes, initializers, last):
    """Make the graph fail for batches of 11 rows, a size that the trial does not try."""
    constants = {"rows": [11], "outside": [99_999_999], "first": [0]}
    initializers += [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    initializers.append(numpy_helper.from_array(np.zeros(1, np.float32), "only"))
    nodes.append(helper.make_node("Shape", [last], ["size"], end=1))
    nodes.append(helper.make_node("Equal", ["size", "rows"], ["is bad"]))
    nodes.append(helper.make_node("Where", ["is bad", "outside", "first"], ["index"]))
    nodes.append(helper.make_node("Gather", ["only", "index"], ["zero"]))
    nodes.append(helper.make_node("Add", [last, "zero"], ["same"]))
    return "same"


def rejection(call, *arguments) -> grpc.RpcError:
    """Return the error with which `call` ends."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=10)
    return caught.value


def test_an_unstable_model_is_served_only_if_the_flag_allows_it(start_service, tmp_path):
    """A model that divides by the ink of a drawing is refused at start.

    With --allow-unstable-scores it is served. A blank drawing then receives INTERNAL, and other drawings their labels.
    """
    path = write_model(tmp_path / "row-norm.onnx", front=divided_by_the_row)
    command = [BIN / "sketchbatch-serve", "--model", path, "--address", "127.0.0.1:0"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=50, check=False)
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"sketchbatch-serve: {path}: the scores of a blank drawing are not finite")
    service = start_service(path, "--allow-unstable-scores")
    with grpc.insecure_channel(service.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        rows = np.concatenate([INK, BLANK])
        error = rejection(stub.Classify, pb.ClassifyRequest(bitmaps=rows.tobytes(), request_id="abc", top_k=1))
        assert len(stub.Classify(pb.ClassifyRequest(bitmaps=INK.tobytes(), top_k=1), timeout=10).class_index) == 1
    service.stop()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == (
        "model 'row-norm' version 1 returned scores that are not finite for row 1, request id abc"
    )


def test_a_failed_model_call_names_the_model(start_service, tmp_path):
    """After a failed call of a real model, the client receives the name of the model, but no text of ONNX Runtime."""
    service = start_service(write_model(tmp_path / "odd.onnx", front=failing_at_11_rows))
    with grpc.insecure_channel(service.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        bitmaps = np.repeat(INK, 11, axis=0).tobytes()
        error = rejection(stub.Classify, pb.ClassifyRequest(bitmaps=bitmaps, request_id="abc"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "a call of model 'odd' version 1 failed, request id abc"
    assert "Gather" in str(service.wait_for("request failed"))
    service.stop()


def test_a_client_needs_no_knowledge_of_the_names_in_the_file(start_service, tmp_path):
    """A file with other names is served: GetModel names the input of the file, and the tensors of requests keep theirs.

    The scores are those of the model. It has no softmax, so both protocols announce logits.
    """
    path = write_model(tmp_path / "m.onnx", input_name="input_1:0", output_name="Identity:0", ending="")
    service = start_service(path)
    drawings = random_drawings(5)
    with grpc.insecure_channel(service.address) as channel:
        stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
        model = stub.GetModel(pb.GetModelRequest(), timeout=10).model
        scores = stub.Classify(pb.ClassifyRequest(bitmaps=drawings.tobytes()), timeout=10).scores
        metadata, inferred = _metadata(channel), _infer(channel, drawings)
    service.stop()
    assert (model.input.name, model.score_kind, metadata.properties["scores"]) == ("input_1:0", "logits", "logits")
    assert [tensor.name for tensor in (*metadata.inputs, *metadata.outputs)] == ["bitmaps", "scores"]
    assert inferred.raw_output_contents[0] == scores
    expected = drawings.reshape(5, 784).astype(np.float32) @ weights()
    assert np.allclose(np.frombuffer(scores, "<f4").reshape(5, 3), expected, atol=1e-4)


def _metadata(channel: grpc.Channel) -> oip.ModelMetadataResponse:
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelMetadata",
        request_serializer=oip.ModelMetadataRequest.SerializeToString,
        response_deserializer=oip.ModelMetadataResponse.FromString,
    )
    return call(oip.ModelMetadataRequest(), timeout=10)


def _infer(channel: grpc.Channel, bitmaps: np.ndarray) -> oip.ModelInferResponse:
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    request = oip.ModelInferRequest(raw_input_contents=[bitmaps.tobytes()])
    request.inputs.add(name="bitmaps", datatype="UINT8", shape=bitmaps.shape)
    return call(request, timeout=10)
