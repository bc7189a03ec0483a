"""Test that the codec of the Open Inference Protocol decodes tensors into bitmaps and encodes scores into tensors."""

import numpy as np
import pytest
from sketchbatch.openinference.v2 import open_inference_pb2 as pb
from sketchbatch_service.api.openinference.codec import decode, encode, is_quick, read, timeout_s, top_k
from sketchbatch_service.errors import InvalidRequest

LEVELS = np.resize(np.arange(256, dtype=np.uint8), (2, 28, 28))  # the drawings contain every grey level
SHAPES = [(2, 28, 28), (2, 28, 28, 1), (2, 1, 28, 28), (2, 784)]


def request(
    datatype: str = "UINT8", shape: tuple = (2, 28, 28), *, name: str = "bitmaps", raw: bytes = b"", **typed
) -> pb.ModelInferRequest:
    """Return a request with one input tensor, as raw bytes or as typed numbers."""
    made = pb.ModelInferRequest(raw_input_contents=[raw] if raw else [])
    tensor = made.inputs.add(name=name, datatype=datatype, shape=shape)
    if typed:
        tensor.contents.CopyFrom(pb.InferTensorContents(**typed))
    return made


def rejection(bad: pb.ModelInferRequest, max_rows: int = 8) -> str:
    """Return the message of the error that decoding raises."""
    with pytest.raises(InvalidRequest) as caught:
        decode(read(bad.SerializeToString()), max_rows=max_rows)
    return str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["raw", "uint", "int", "bytes", "fp32", "raw fp32"])
def test_every_form_of_a_tensor_gives_the_same_bitmaps(form, shape):
    """Each form of a tensor gives the same bitmaps, for every grey level.

    A tensor contains raw bytes or typed numbers, as uint8 or float32, and may have a fourth dimension of size 1.
    """
    ink = LEVELS / np.float32(255)
    made = {
        "raw": request(shape=shape, raw=LEVELS.tobytes()),
        "uint": request(shape=shape, uint_contents=LEVELS.ravel().tolist()),
        "int": request(shape=shape, int_contents=LEVELS.ravel().tolist()),
        "bytes": request(shape=shape, bytes_contents=[row.tobytes() for row in LEVELS]),
        "fp32": request("FP32", shape, fp32_contents=ink.ravel().tolist()),
        "raw fp32": request("FP32", shape, raw=ink.astype("<f4").tobytes()),
    }[form]
    received = read(made.SerializeToString())
    bitmaps = decode(received, max_rows=2)
    assert bitmaps.dtype == np.uint8
    assert np.array_equal(bitmaps, LEVELS)
    assert (is_quick(received, rows=2), is_quick(received, rows=1)) == (True, form == "raw")


def test_the_raw_contents_of_a_large_request_are_not_copied():
    """The decoded bitmaps of a large request share memory with the received message."""
    bitmaps = np.resize(LEVELS, (500, 28, 28))
    made = request(shape=(500, 28, 28), raw=bitmaps.tobytes())
    made.id = "mine"
    message = made.SerializeToString()
    received = read(message)
    decoded = decode(received, max_rows=500)
    assert (received.fields.id, np.array_equal(decoded, bitmaps)) == ("mine", True)
    assert np.shares_memory(decoded, np.frombuffer(message, np.uint8))


@pytest.mark.parametrize("place", range(4))
def test_raw_floats_of_a_large_request_may_lie_at_any_address(place):
    """Raw FP32 of a large request is decoded wherever it lies in the message, as float32 at any address."""
    made = request("FP32", (20, 784), raw=np.resize(LEVELS / np.float32(255), (20, 784)).astype("<f4").tobytes())
    made.id = "i" * (place + 1)
    assert np.array_equal(decode(read(made.SerializeToString()), max_rows=20), np.resize(LEVELS, (20, 28, 28)))


def test_ink_between_grey_levels_is_rounded_to_the_nearest():
    """Decoding rounds FP32 values to the nearest grey level and does not truncate them."""
    ink = np.zeros((1, 784), "<f4")
    ink[0, :4] = [0.4 / 255, 0.6 / 255, 254.4 / 255, 1]
    received = read(request("FP32", (1, 784), raw=ink.tobytes()).SerializeToString())
    assert decode(received, max_rows=1).ravel()[:5].tolist() == [0, 1, 254, 255, 0]


@pytest.mark.parametrize(
    ("value", "got"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (-0.01, "-0.01"), (255, "255")]
)
@pytest.mark.parametrize("form", ["raw", "typed"])
def test_ink_that_is_not_finite_or_out_of_range_is_rejected(value, got, form):
    """A request is rejected if one of its FP32 values is not finite or is outside 0 to 1.

    The error contains the valid range.
    """
    ink = np.zeros(2 * 784, "<f4")
    ink[1000] = value
    contents = {"raw": ink.tobytes()} if form == "raw" else {"fp32_contents": ink.tolist()}
    message = rejection(request("FP32", (2, 28, 28, 1), **contents))
    assert "must be 0 to 1 for FP32 (0 = paper, 1 = ink; divide grey levels by 255)" in message
    assert message.endswith(f"got {got}")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (pb.ModelInferRequest(), "inputs must be one tensor, bitmaps, got none"),
        (request(name="image", raw=LEVELS.tobytes()), r"inputs must be one tensor, bitmaps, got ['image']"),
        (request("INT64", raw=LEVELS.tobytes()), "inputs[0].datatype must be UINT8 (0 to 255) or FP32 (0 to 1), got"),
        (request(shape=(2, 28), raw=LEVELS.tobytes()), "inputs[0].shape must be [rows, 28, 28], [rows, 28, 28, 1]"),
        (request(shape=(), raw=LEVELS.tobytes()), "inputs[0].shape must be [rows, 28, 28], [rows, 28, 28, 1]"),
        (request(shape=(0, 784)), "inputs[0].shape must be 1..8 rows, got 0 rows"),
        (request(shape=(-1, 784)), "inputs[0].shape must be 1..8 rows, got -1 rows"),
        (request(shape=(9, 784), raw=bytes(9 * 784)), "inputs[0].shape must be 1..8 rows, got 9 rows"),
        (request(raw=b"123"), "raw_input_contents[0] must be 1568 bytes (UINT8 [2, 28, 28]), got 3 bytes"),
        (request("FP32", raw=LEVELS.tobytes()), "must be 6272 bytes (FP32 [2, 28, 28]), got 1568 bytes"),
        (request(), "inputs[0].contents.uint_contents must be 1568 values (UINT8 [2, 28, 28]), got 0 values"),
        (request(fp32_contents=[0.5]), "inputs[0].contents.uint_contents must be 1568 values"),
        (request("FP32", uint_contents=[1]), "inputs[0].contents.fp32_contents must be 1568 values"),
        (request(bytes_contents=[b"12"]), "inputs[0].contents.bytes_contents must be 1568 bytes"),
        (request(uint_contents=[256] * 1568), "inputs[0].contents must be 0..255 for UINT8, got 256"),
        (request(int_contents=[0, -1] * 784), "inputs[0].contents must be 0..255 for UINT8, got -1"),
        (
            request(raw=LEVELS.tobytes(), uint_contents=[1]),
            "contents must be empty with raw_input_contents",
        ),
        (pb.ModelInferRequest(inputs=[*request().inputs, *request().inputs]), "got ['bitmaps', 'bitmaps']"),
        (
            pb.ModelInferRequest(inputs=request(shape=(8, 784)).inputs, raw_input_contents=[b"1" * 40_000] * 2),
            "raw_input_contents must be one for each input, 1, got 2",
        ),
        (
            pb.ModelInferRequest(inputs=request(shape=(8, 784)).inputs, raw_input_contents=[b"1" * 40_000]),
            "raw_input_contents[0] must be 6272 bytes (UINT8 [8, 784]), got 40000 bytes",
        ),
    ],
)
def test_an_invalid_tensor_is_rejected(bad, message):
    """The error for an invalid tensor contains the field, the expected value and the received value."""
    assert message in rejection(bad)


def test_shared_memory_is_rejected():
    """A tensor in shared memory is rejected, because the service has no access to the memory of a client."""
    bad = request()
    bad.inputs[0].parameters["shared_memory_region"].string_param = "here"
    assert "inputs[0].parameters must be without shared memory" in rejection(bad)


def outputs(*parameters: dict[str, pb.InferParameter], name: str = "scores") -> pb.ModelInferRequest:
    """Return a request that names the given output tensors."""
    tensor = pb.ModelInferRequest.InferRequestedOutputTensor
    return pb.ModelInferRequest(outputs=[tensor(name=name, parameters=p) for p in parameters])


def test_the_requested_output_is_all_scores_or_the_best_classes():
    """The response contains all scores, or the k best classes if the request's output has `classification` = k."""
    assert top_k(outputs(), classes=3) == 0
    assert top_k(outputs({}), classes=3) == 0
    assert top_k(outputs({"classification": pb.InferParameter(int64_param=3)}), classes=3) == 3
    assert top_k(outputs({"classification": pb.InferParameter(uint64_param=1)}), classes=3) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (outputs({}, name="labels"), "outputs must be scores, or none, got ['labels']"),
        (outputs({}, {}), "outputs must be scores, or none, got ['scores', 'scores']"),
        (outputs({"classification": pb.InferParameter(int64_param=4)}), "must be an integer, 1..3, got 4"),
        (outputs({"classification": pb.InferParameter(int64_param=0)}), "must be an integer, 1..3, got 0"),
        (
            outputs({"classification": pb.InferParameter(string_param="2")}),
            "an integer, 1..3, got another type",
        ),
        (outputs({"shared_memory_region": pb.InferParameter(string_param="x")}), "without shared memory"),
    ],
)
def test_an_unsupported_output_is_rejected(bad, message):
    """The codec rejects an unsupported output before the model call."""
    with pytest.raises(InvalidRequest) as caught:
        top_k(bad, classes=3)
    assert message in str(caught.value)


SCORES = np.array([[0.25, 0.5, 0.25], [0, 0, 1]], np.float32)


@pytest.mark.parametrize("as_raw", [True, False])
def test_a_response_has_the_form_of_its_request(as_raw):
    """A response has the form of its request: raw bytes or typed numbers.

    The response to a request with raw bytes has only `raw_output_contents`. Other responses have only `contents`.
    """
    scores, classified = pb.ModelInferResponse(), pb.ModelInferResponse()
    labels = ("ant", "bee", "kuh \u00fc")
    encode(SCORES, 0, labels, scores, as_raw=as_raw)
    encode(SCORES, 2, labels, classified, as_raw=as_raw)
    first, second = scores.outputs[0], classified.outputs[0]
    assert (first.name, first.datatype, list(first.shape)) == ("scores", "FP32", [2, 3])
    assert (second.name, second.datatype, list(second.shape)) == ("scores", "BYTES", [2, 2])
    texts = [text.encode() for text in ("0.500000:1:bee", "0.250000:0:ant", "1.000000:2:kuh \u00fc", "0.000000:0:ant")]
    if as_raw:
        assert np.array_equal(np.frombuffer(scores.raw_output_contents[0], "<f4").reshape(2, 3), SCORES)
        assert classified.raw_output_contents == [b"".join(len(text).to_bytes(4, "little") + text for text in texts)]
        assert not first.HasField("contents")
        assert not second.HasField("contents")
    else:
        assert list(first.contents.fp32_contents) == SCORES.ravel().tolist()
        assert list(second.contents.bytes_contents) == texts
        assert not scores.raw_output_contents
        assert not classified.raw_output_contents


@pytest.mark.parametrize(
    ("parameter", "seconds"),
    [
        (pb.InferParameter(int64_param=1500), 0.0015),
        (pb.InferParameter(uint64_param=2_000_000), 2),
        (pb.InferParameter(int64_param=0), float("inf")),
        (pb.InferParameter(string_param="soon"), float("inf")),
    ],
)
def test_a_timeout_is_in_microseconds_and_0_is_none(parameter, seconds):
    """A timeout is in microseconds, as in Triton; 0 means no timeout, and a value of another type is ignored."""
    assert timeout_s(pb.ModelInferRequest(parameters={"timeout": parameter})) == seconds
    assert timeout_s(pb.ModelInferRequest()) == float("inf")
