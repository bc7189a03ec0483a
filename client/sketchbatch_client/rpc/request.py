"""What is sent: bitmaps checked and cut into requests, and a request's bytes, built with one copy of its rows.

Protobuf would copy the rows twice more, into the message and out of it; a message's fields may be written one after
the other, so the rows' field is put behind the others by hand.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import index
from typing import NamedTuple

import numpy as np
from sketchbatch.v1 import classifier_pb2 as pb

from ..drawings.readers import Bitmaps
from ..errors import RequestRefused

_LENGTH_DELIMITED = 2  # https://protobuf.dev/programming-guides/encoding/#structure
_BITMAPS_TAG = bytes([pb.ClassifyRequest.BITMAPS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])


class Question(NamedTuple):
    """What is asked of a batch; rows that are asked the same may share a request."""

    top_k: int
    model_name: str
    model_version: str


def question(top_k: int, model_name: str, model_version: str) -> Question:
    """Checks what no server could read; whether there is such a model, and so many classes, the server says."""
    if index(top_k) < 0:
        raise RequestRefused(f"top_k must be 0 or more, got {top_k}")
    return Question(index(top_k), model_name, model_version)


def as_rows(bitmaps: Bitmaps) -> Bitmaps:
    """Checks type and shape; a view of (rows, 28, 28)."""
    bitmaps = np.asanyarray(bitmaps)
    if bitmaps.dtype == np.uint8:
        if bitmaps.shape == (28, 28):
            return bitmaps[None]
        if bitmaps.shape[1:] in ((28, 28), (784,)):
            return bitmaps.reshape(-1, 28, 28)
    raise RequestRefused(f"bitmaps must be uint8 (rows, 28, 28) or (rows, 784), got {bitmaps.dtype} {bitmaps.shape}")


def in_parts(rows: Bitmaps, rows_per_request: int) -> Iterator[Bitmaps]:
    """Views of the rows in order, each no more than fits one request."""
    for start in range(0, len(rows), rows_per_request):
        yield rows[start : start + rows_per_request]


def encoded(question: Question, parts: Sequence[Bitmaps]) -> bytes:
    """A ClassifyRequest of the rows of all parts, in order, as it goes over the wire."""
    payload_bytes = sum(part.nbytes for part in parts)
    buffers = (np.ascontiguousarray(part).data for part in parts)
    return b"".join((_head(question), _BITMAPS_TAG, _varint(payload_bytes), *buffers))


@lru_cache(maxsize=64)
def _head(question: Question) -> bytes:
    """A request without its rows; most clients ask the same again and again."""
    return pb.ClassifyRequest(
        top_k=question.top_k, model_name=question.model_name, model_version=question.model_version
    ).SerializeToString()


def _varint(number: int) -> bytes:
    """Seven bits a byte, lowest first, the top bit set on all but the last."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
