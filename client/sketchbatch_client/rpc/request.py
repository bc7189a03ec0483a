"""Check bitmaps and options, and encode a request with one copy of its rows.

Protobuf would copy the rows two more times: into the message object, and from there into the encoded bytes. An encoded
message is a sequence of fields, so the field with the rows can be appended to the other encoded fields.
"""

from collections.abc import AsyncIterable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from sketchbatch.v1 import classifier_pb2 as pb

from ..arguments import whole_number
from ..drawings.bitmap_arrays import Drawings, as_bitmaps, warn_of_ink
from ..drawings.readers import Bitmaps
from ..errors import RequestRefused

_MAX_TOP_K = 2**32 - 1  # the field is a uint32
_MAX_RESPONSE_BYTES = 4 << 20  # of scores that the service computes, or returns, for one request of several rows
_LENGTH_DELIMITED = 2  # https://protobuf.dev/programming-guides/encoding/#structure
_BITMAPS_TAG = bytes([pb.ClassifyRequest.BITMAPS_FIELD_NUMBER << 3 | _LENGTH_DELIMITED])

Batches = Drawings | Iterable[Drawings] | AsyncIterable[Drawings]
"""The drawings of a bulk call: batches, or one batch."""


class RequestKey(NamedTuple):
    """The fields that must be equal for two calls to share one request."""

    top_k: int
    model_name: str
    model_version: str


class RequestLimit(NamedTuple):
    """What limits the rows of a request to one model."""

    max_request_rows: int  # limit of the service
    classes: int


def request_key(top_k: int, model_name: str, model_version: str) -> RequestKey:
    """Return the key; raise RequestRefused if a field cannot be encoded.

    The server checks whether there are `top_k` classes, and whether it serves the model.
    """
    try:
        classes = whole_number("top_k", top_k, 0, _MAX_TOP_K)
    except ValueError as exc:
        raise RequestRefused(str(exc)) from exc
    return RequestKey(classes, as_text("model_name", model_name), as_text("model_version", model_version))


def rows_by_size(classes: int, top_k: int) -> int:
    """Return the most rows per request whose scores fit into `_MAX_RESPONSE_BYTES`; at least 1.

    With up to 1,024 classes this is at least 1,024 rows. The service computes the scores of all classes for any
    `top_k`, and an entry of the best `top_k` takes 8 bytes.
    """
    return max(1, _MAX_RESPONSE_BYTES // max(4 * classes, 8 * top_k, 1))


def as_text(name: str, value: object) -> str:
    """Return the argument `name` of a call; raise RequestRefused unless it is a str."""
    if not isinstance(value, str):
        raise RequestRefused(f"{name} must be text, got {value!r}")
    return value


def as_rows(bitmaps: Drawings) -> Bitmaps:
    """Return drawings as uint8 (rows, 28, 28), or raise RequestRefused; warn if they look inverted."""
    try:
        rows = as_bitmaps(bitmaps)
    except ValueError as exc:
        raise RequestRefused(str(exc)) from exc
    warn_of_ink(rows)
    return rows


def encode(key: RequestKey, parts: Sequence[Bitmaps]) -> bytes:
    """Return an encoded ClassifyRequest with the rows of all parts, in order."""
    payload_bytes = sum(part.nbytes for part in parts)
    buffers = (np.ascontiguousarray(part).data for part in parts)
    return b"".join((_encode_key(key), _BITMAPS_TAG, _varint(payload_bytes), *buffers))


@lru_cache(maxsize=64)
def _encode_key(key: RequestKey) -> bytes:
    """Return an encoded request without rows; most clients repeat a few keys."""
    return pb.ClassifyRequest(**key._asdict()).SerializeToString()


def _varint(number: int) -> bytes:
    """Return `number` with seven bits per byte, lowest first; the top bit is set in all bytes but the last."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
