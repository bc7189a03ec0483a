"""Decode the bytes of requests into bitmaps without a copy, and encode scores into responses.

Unary and streamed messages have the same fields and share these functions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sketchbatch.v1 import classifier_pb2 as pb

from ...arrays import ROW_BYTES, ROW_SHAPE, Bitmaps, Scores
from ...batching.row_queue import Answer
from ...errors import InvalidRequest
from ..large_field import LARGE_BYTES, take_out

Response = pb.ClassifyResponse | pb.ClassifyStreamResponse


@dataclass(frozen=True, slots=True)
class Request:
    """A `ClassifyRequest` or `ClassifyStreamRequest`."""

    fields: pb.ClassifyRequest  # all fields except `bitmaps`, which may be missing here
    bitmaps: bytes | memoryview  # the bytes of the field `bitmaps`


def read(message: bytes) -> Request:
    """Parse one message; raise google.protobuf.message.DecodeError if the bytes are not a message."""
    if len(message) >= LARGE_BYTES and (taken := take_out(message, pb.ClassifyRequest.BITMAPS_FIELD_NUMBER)):
        views, rest = taken
        return Request(pb.ClassifyRequest.FromString(rest), views[-1] if views else b"")  # the last one counts
    fields = pb.ClassifyRequest.FromString(message)
    return Request(fields, fields.bitmaps)


def decode(request: Request, *, max_rows: int, classes: int) -> Bitmaps:
    """Return a read-only view of the request's bytes: uint8, (rows, 28, 28).

    Raise InvalidRequest if a row is incomplete, if there are not 1 to `max_rows` rows, or if `top_k` exceeds `classes`.
    """
    payload_bytes = len(request.bitmaps)
    rows, rest = divmod(payload_bytes, ROW_BYTES)
    if rest:
        raise InvalidRequest(
            field="bitmaps",
            expected=f"a multiple of {ROW_BYTES} bytes (28 x 28 uint8 per row)",
            got=f"{payload_bytes} bytes",
        )
    if not 1 <= rows <= max_rows:
        raise InvalidRequest(field="bitmaps", expected=f"1..{max_rows} rows", got=f"{rows} rows")
    if request.fields.top_k > classes:
        raise InvalidRequest(
            field="top_k", expected=f"1..{classes}, or 0 for the scores of all classes", got=str(request.fields.top_k)
        )
    return np.frombuffer(request.bitmaps, np.uint8).reshape(rows, *ROW_SHAPE)


def encode(answer: Answer, top_k: int, response: Response) -> None:
    """Fill `response` with the times, and with the best `top_k` scores of each row, or all scores if `top_k` is 0."""
    response.rows = len(answer.scores)
    response.queue_us = round(answer.queue_s * 1e6)
    response.inference_us = round(answer.inference_s * 1e6)
    if top_k:
        indices = best(answer.scores, top_k)
        response.class_index.extend(indices.ravel().tolist())
        response.score.extend(np.take_along_axis(answer.scores, indices, axis=1).ravel().tolist())
    else:
        response.scores = answer.scores.astype("<f4", copy=False).tobytes()


def best(scores: Scores, top_k: int) -> NDArray[np.intp]:
    """Return the class indices of the `top_k` highest scores, (rows, top_k), best first, ties to the lower index."""
    if top_k == 1:
        indices: NDArray[np.intp] = scores.argmax(axis=1, keepdims=True)
    else:
        indices = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return indices
