"""Check properties of the codecs that hold for every request and every matrix of scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.api.classifier.codec import decode, encode, read
from sketchbatch_service.api.openinference import codec as tensor_codec
from sketchbatch_service.batching.row_queue import Answer
from sketchbatch_service.errors import InvalidRequest

MAX_ROWS, CLASSES = 5, 4

some_bitmaps = arrays(np.uint8, st.tuples(st.integers(1, MAX_ROWS), st.just(28), st.just(28)))
few_values = st.sampled_from(
    [0.0, 0.25, 0.5, 1.0, float(np.float32(1e-30))]
)  # with so few values, rows often contain equal scores
some_scores = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=few_values)


@settings(max_examples=30)
@given(some_bitmaps)
def test_any_bitmaps_are_decoded_unchanged(bitmaps):
    """The bytes of a ClassifyRequest and every tensor form of the Open Inference Protocol give the same bitmaps."""
    assert np.array_equal(
        decode(read(pb.ClassifyRequest(bitmaps=bitmaps.tobytes()).SerializeToString()), max_rows=5, classes=1), bitmaps
    )
    for request in tensor_requests(bitmaps):
        received = tensor_codec.read(request.SerializeToString())
        assert np.array_equal(tensor_codec.decode(received, max_rows=MAX_ROWS), bitmaps)


def tensor_requests(bitmaps: np.ndarray):
    """Yield requests with the same bitmaps as raw bytes, raw floats, typed integers and typed floats."""
    ink = bitmaps.astype(np.float32) / 255
    for datatype, raw in (("UINT8", bitmaps.tobytes()), ("FP32", ink.astype("<f4").tobytes())):
        request = oip.ModelInferRequest(raw_input_contents=[raw])
        request.inputs.add(name="bitmaps", datatype=datatype, shape=bitmaps.shape)
        yield request
    for datatype, field, values in (("UINT8", "uint_contents", bitmaps), ("FP32", "fp32_contents", ink)):
        request = oip.ModelInferRequest()
        tensor = request.inputs.add(name="bitmaps", datatype=datatype, shape=(len(bitmaps), 784))
        getattr(tensor.contents, field).extend(values.ravel().tolist())
        yield request


@given(st.integers(0, 784 * (MAX_ROWS + 2)), st.integers(0, 2**32 - 1))
def test_a_request_is_accepted_if_and_only_if_its_numbers_are_valid(payload_bytes, top_k):
    """A request is rejected if its number of bytes or its top_k is invalid; every other request is decoded.

    The error contains the invalid number.
    """
    request = read(pb.ClassifyRequest(bitmaps=bytes(payload_bytes), top_k=top_k).SerializeToString())
    rows, rest = divmod(payload_bytes, 784)
    wrong = f"got {payload_bytes} bytes" if rest else f"got {rows} rows" if not 1 <= rows <= MAX_ROWS else ""
    wrong = wrong or (f"got {top_k}" if top_k > CLASSES else "")
    if wrong:
        with pytest.raises(InvalidRequest, match=wrong):
            decode(request, max_rows=MAX_ROWS, classes=CLASSES)
    else:
        assert len(decode(request, max_rows=MAX_ROWS, classes=CLASSES)) == rows


@given(some_scores, st.data())
def test_the_best_classes_are_those_of_a_stable_sort(scores, data):
    """Each row lists its best classes first with their scores; among equal scores the lower class index is first."""
    top_k = data.draw(st.integers(1, scores.shape[1]))
    response = pb.ClassifyResponse()
    encode(Answer(scores, 0.0, 0.0), top_k, response)
    expected = [sorted(range(len(row)), key=lambda index: (-row[index], index))[:top_k] for row in scores]
    assert list(response.class_index) == np.concatenate(expected).tolist()
    assert list(response.score) == np.take_along_axis(scores, np.array(expected), axis=1).ravel().tolist()


@given(some_scores)
def test_all_scores_are_encoded_unchanged(scores):
    """Encoding and decoding a matrix of scores preserves every bit."""
    response = pb.ClassifyResponse()
    encode(Answer(scores, 0.0, 0.0), 0, response)
    assert np.array_equal(np.frombuffer(response.scores, "<f4").reshape(response.rows, -1), scores)
