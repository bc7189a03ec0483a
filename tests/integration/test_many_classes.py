"""Test that a model with ten thousand classes needs bounded memory, and that GetModel states its rows per request."""

import grpc
import numpy as np
import pytest
from foreign_models import write_foreign
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_client import Client

CLASSES, MOST_ROWS = 10_000, 838

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def address(start_service, tmp_path_factory):
    """Return the address of a service with ten thousand classes."""
    model = write_foreign("ten-thousand", tmp_path_factory.mktemp("many") / "model.onnx")
    return start_service(model, "--provider", "cpu").address


@pytest.fixture
def stub(address):
    """Return a stub of a plain channel with gRPC's default limit of 4 MiB."""
    with grpc.insecure_channel(address) as channel:
        yield classifier_pb2_grpc.ClassifierServiceStub(channel)


def classify(stub, rows, top_k):
    return stub.Classify(pb.ClassifyRequest(bitmaps=bytes(784 * rows), top_k=top_k))


def test_the_limit_of_rows_is_stated_and_kept(stub):
    """GetModel states the limit that follows from the number of classes; a larger request is rejected."""
    assert stub.GetModel(pb.GetModelRequest()).model.max_request_rows == MOST_ROWS
    assert classify(stub, MOST_ROWS, 1).rows == MOST_ROWS
    with pytest.raises(grpc.RpcError) as rejected:
        classify(stub, MOST_ROWS + 1, 1)
    assert rejected.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"1..{MOST_ROWS} rows" in rejected.value.details()


def test_a_plain_stub_receives_4_mib_at_most(stub):
    """All scores of 200 rows exceed gRPC's default limit; the best ten scores of each row do not."""
    with pytest.raises(grpc.RpcError) as too_large:
        classify(stub, 200, 0)
    assert too_large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(classify(stub, 200, 10).class_index) == 2000


def test_the_client_receives_any_number_of_rows(address):
    """`Client` splits a call so that every response fits; the scores are those of separate calls."""
    bitmaps = np.random.default_rng(3).integers(0, 256, (250, 28, 28), np.uint8)
    with Client(address) as client:
        whole = client.classify(bitmaps)
        assert whole.scores.shape == (250, CLASSES)
        assert np.allclose(whole.scores[200:], client.classify(bitmaps[200:]).scores, atol=1e-6)
