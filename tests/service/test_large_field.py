"""Test that `take_out` extracts a large field without a copy, and gives the same result as protobuf."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.api.classifier.codec import decode, read
from sketchbatch_service.api.large_field import take_out

BITMAPS = pb.ClassifyRequest.BITMAPS_FIELD_NUMBER

some_requests = st.builds(
    pb.ClassifyRequest,
    model_name=st.text(max_size=200),
    model_version=st.text(max_size=3),
    bitmaps=st.binary(max_size=300),
    top_k=st.integers(0, 2**32 - 1),
    request_id=st.text(max_size=3),
)


@given(st.lists(some_requests, min_size=1, max_size=3), st.data())
def test_a_message_is_parsed_as_protobuf_parses_it(requests, data):
    """`take_out` gives the same result as protobuf, whatever fields a message has and in whatever order.

    Fields may be missing, repeated or unknown; the last occurrence of a field counts.
    """
    later = data.draw(st.sampled_from([b"", b"\x30\xff\x01", b"\x3a\x02hi", b"\x1a\x00"]))
    message = data.draw(st.permutations([*(each.SerializeToString() for each in requests), later]))
    message = b"".join(message)
    bitmaps, rest = take_out(message, BITMAPS)
    request = pb.ClassifyRequest.FromString(rest)
    assert not request.bitmaps
    request.bitmaps = b"".join(bitmaps[-1:])
    assert request.SerializeToString(deterministic=True) == pb.ClassifyRequest.FromString(message).SerializeToString(
        deterministic=True
    )


some_tensors = st.builds(
    oip.ModelInferRequest,
    model_name=st.text(max_size=200),
    id=st.text(max_size=3),
    inputs=st.lists(st.builds(oip.ModelInferRequest.InferInputTensor, name=st.text(max_size=3)), max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=200), max_size=3),
)


@given(st.lists(some_tensors, min_size=1, max_size=3))
def test_all_occurrences_of_a_repeated_field_are_taken_out(requests):
    """`take_out` gives the same values of a repeated field as protobuf, in the same order."""
    message = b"".join(each.SerializeToString() for each in requests)
    views, rest = take_out(message, oip.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER)
    request = oip.ModelInferRequest.FromString(rest)
    assert not request.raw_input_contents
    request.raw_input_contents.extend(map(bytes, views))
    assert request == oip.ModelInferRequest.FromString(message)


@given(st.binary(max_size=60))
def test_bytes_that_protobuf_rejects_stay_rejected(message):
    """If protobuf rejects a message, it also rejects the bytes that remain after `take_out`.

    `take_out` may instead return None, so that protobuf parses the whole message.
    """
    if taken := take_out(message, BITMAPS):
        try:
            request = pb.ClassifyRequest.FromString(taken[1])
        except DecodeError:
            return
        request.bitmaps = b"".join(taken[0][-1:])
        assert request == pb.ClassifyRequest.FromString(message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x1a\x05four",  # a field that is longer than the message
        b"\x1a\x80",  # a message that ends within a length
        b"\x1a" + b"\xff" * 10 + b"\x01",  # a length of eleven bytes
        b"\x9a\x00\x01x",  # the tag of field 3, written in two bytes
        b"\x0d\x00\x00\x00\x00",  # a field of type fixed32
        b"\x13\x14",  # a group
    ],
)
def test_unusual_messages_are_left_to_protobuf(message):
    """For an unusual message, valid or invalid, `take_out` returns None, and protobuf then parses the whole message."""
    assert take_out(message, BITMAPS) is None


def test_a_message_of_very_many_fields_is_left_to_protobuf():
    """`take_out` returns None for a message of very many fields, which protobuf then parses as a whole.

    Protobuf parses five million fields in 0.05 s. The Python code of `take_out` would block the polling thread for
    seconds.
    """
    assert take_out(b"\x20\x01" * 63, BITMAPS) is not None
    assert take_out(b"\x20\x01" * 64, BITMAPS) is None
    assert read(b"\x20\x01" * 5_000_000).fields.top_k == 1


def test_the_bitmaps_of_a_large_request_are_not_copied():
    """The decoded bitmaps of a large request share memory with the received message."""
    bitmaps = np.random.default_rng(1).integers(0, 256, (500, 28, 28), np.uint8)
    message = pb.ClassifyRequest(bitmaps=bitmaps.tobytes(), request_id="mine", top_k=2).SerializeToString()
    request = read(message)
    assert (request.fields.request_id, request.fields.top_k) == ("mine", 2)
    decoded = decode(request, max_rows=500, classes=3)
    assert np.array_equal(decoded, bitmaps)
    assert np.shares_memory(decoded, np.frombuffer(message, np.uint8))


def test_large_invalid_bytes_are_rejected():
    """Reading large invalid bytes raises protobuf's own error."""
    with pytest.raises(DecodeError):
        read(b"\x1a\xff\xff\xff\x7f" + bytes(100_000))
