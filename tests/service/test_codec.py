"""Test that the codec decodes bytes into bitmaps and encodes scores into responses."""

import numpy as np
import pytest
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.api.classifier.codec import decode as decode_read
from sketchbatch_service.api.classifier.codec import encode, read
from sketchbatch_service.batching.row_queue import Answer
from sketchbatch_service.errors import InvalidRequest

LIMITS = {"max_rows": 3, "classes": 4}


def decode(request: pb.ClassifyRequest, **limits: int) -> np.ndarray:
    """Parse the serialized bytes of a request, then decode its bitmaps."""
    return decode_read(read(request.SerializeToString()), **limits)


def test_bytes_become_bitmaps_row_by_row(noise):
    """The codec decodes every 784 bytes into one bitmap of 28 lines with 28 pixels each, and copies no bytes."""
    bitmaps = noise(3)
    request = pb.ClassifyRequest(bitmaps=bitmaps.tobytes())
    decoded = decode(request, **LIMITS)
    assert np.array_equal(decoded, bitmaps)
    assert not decoded.flags.owndata


@pytest.mark.parametrize(
    ("payload_bytes", "message"),
    [
        (0, r"1\.\.3 rows, got 0 rows"),
        (783, "a multiple of 784 bytes .* got 783 bytes"),
        (785, "a multiple of 784 bytes .* got 785 bytes"),
        (784 * 4, r"1\.\.3 rows, got 4 rows"),
    ],
)
def test_the_error_of_a_wrong_byte_count_contains_the_expected_and_the_received_number(payload_bytes, message):
    """A request is rejected if its bitmaps are no whole number of rows, no row, or too many rows.

    The error contains the field, the expected number and the received number.
    """
    with pytest.raises(InvalidRequest, match=message) as caught:
        decode(pb.ClassifyRequest(bitmaps=bytes(payload_bytes)), **LIMITS)
    assert caught.value.field == "bitmaps"


def test_top_k_above_the_number_of_classes_is_rejected():
    """For a model with four classes, the codec accepts a top_k of 4 and rejects a top_k of 5."""
    decode(pb.ClassifyRequest(bitmaps=bytes(784), top_k=4), **LIMITS)
    with pytest.raises(InvalidRequest, match=r"top_k must be 1\.\.4, or 0 .*, got 5"):
        decode(pb.ClassifyRequest(bitmaps=bytes(784), top_k=5), **LIMITS)


SCORES = np.array([[0.1, 0.4, 0.4, 0.1], [0.7, 0.1, 0.0, 0.2]], np.float32)


def encoded(top_k: int, response=pb.ClassifyResponse):
    """Return a response message with SCORES, encoded as for a request with this `top_k`."""
    message = response()
    encode(Answer(SCORES, queue_s=0.0015, inference_s=2.0), top_k, message)
    return message


@pytest.mark.parametrize("response", [pb.ClassifyResponse, pb.ClassifyStreamResponse])
def test_all_scores_are_encoded_as_little_endian_floats(response):
    """With top_k = 0, a response contains one little-endian float32 score per row and class, and no class indexes.

    The times in the response are in microseconds.
    """
    message = encoded(0, response)
    assert np.array_equal(np.frombuffer(message.scores, "<f4").reshape(2, 4), SCORES)
    assert (message.rows, message.queue_us, message.inference_us) == (2, 1500, 2_000_000)
    assert not message.class_index


@pytest.mark.parametrize(("top_k", "class_index"), [(1, [1, 0]), (2, [1, 2, 0, 3]), (4, [1, 2, 0, 3, 0, 3, 1, 2])])
def test_top_k_is_best_first_and_ties_go_to_the_lower_index(top_k, class_index):
    """With top_k = k, a response lists the k best classes of the first row, then those of the second row, and so on.

    Of two classes with equal scores, the class with the lower index is first.
    """
    message = encoded(top_k)
    assert list(message.class_index) == class_index
    rows = np.repeat([0, 1], top_k)
    assert np.array_equal(np.array(message.score, np.float32), SCORES[rows, class_index])
    assert not message.scores
