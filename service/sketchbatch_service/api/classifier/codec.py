"""Turns the bytes of a request into bitmaps, and scores into a response; no copy on the way in.

Works on the unary and the streamed messages alike: they have the same fields.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sketchbatch.v1 import classifier_pb2 as pb

from ...arrays import ROW_BYTES, ROW_SHAPE, Bitmaps, Scores
from ...batching.row_queue import Answer
from ...errors import InvalidRequest
from .large_field import take_out

Response = pb.ClassifyResponse | pb.ClassifyStreamResponse

_LARGE_BYTES = 1 << 15
"""Size of a message from which on it is cheaper to take its bitmaps out than to have protobuf copy them."""


@dataclass(frozen=True, slots=True)
class Request:
    """A `ClassifyRequest`, or a message of a stream."""

    fields: pb.ClassifyRequest
    """All but `bitmaps`, which may be left out here."""

    bitmaps: bytes | memoryview
    """As they came."""


def read(message: bytes) -> Request:
    """Parses one message.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    if len(message) >= _LARGE_BYTES and (taken := take_out(message, pb.ClassifyRequest.BITMAPS_FIELD_NUMBER)):
        bitmaps, rest = taken
        return Request(pb.ClassifyRequest.FromString(rest), bitmaps)
    fields = pb.ClassifyRequest.FromString(message)
    return Request(fields, fields.bitmaps)


def decode(request: Request, *, max_rows: int, classes: int) -> Bitmaps:
    """Views the request's bytes as uint8, (rows, 28, 28), read-only.

    Raises:
        InvalidRequest: The byte count is no multiple of 784, there are no rows or more than `max_rows`, or `top_k`
            is more than `classes`.
    """
    payload_bytes = len(request.bitmaps)
    rows, rest = divmod(payload_bytes, ROW_BYTES)
    if rest:
        raise InvalidRequest(
            field="bitmaps",
            expected=f"a multiple of {ROW_BYTES} bytes (28 x 28 uint8 a row)",
            got=f"{payload_bytes} bytes",
        )
    if not 1 <= rows <= max_rows:
        raise InvalidRequest(field="bitmaps", expected=f"1..{max_rows} rows", got=f"{rows} rows")
    if request.fields.top_k > classes:
        raise InvalidRequest(
            field="top_k", expected=f"0..{classes} (0 = the scores of all classes)", got=str(request.fields.top_k)
        )
    return np.frombuffer(request.bitmaps, np.uint8).reshape(rows, *ROW_SHAPE)


def encode(answer: Answer, top_k: int, response: Response) -> None:
    """Fills `response` with the scores, whole or the best `top_k` of each row, and the timings."""
    response.rows = len(answer.scores)
    response.queue_us = round(answer.queue_s * 1e6)
    response.inference_us = round(answer.inference_s * 1e6)
    if top_k:
        places = best(answer.scores, top_k)
        response.class_index.extend(places.ravel().tolist())
        response.score.extend(np.take_along_axis(answer.scores, places, axis=1).ravel().tolist())
    else:
        response.scores = answer.scores.astype("<f4", copy=False).tobytes()


def best(scores: Scores, top_k: int) -> NDArray[np.intp]:
    """Indices of the `top_k` highest scores, (rows, top_k), best first, ties to the lower index."""
    if top_k == 1:
        places: NDArray[np.intp] = scores.argmax(axis=1, keepdims=True)
    else:
        places = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return places
