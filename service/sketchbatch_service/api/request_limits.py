"""Limit the rows of a request, so that the scores of one request take bounded memory whatever the number of classes."""

_MAX_SCORES = 8 << 20
"""Most scores of one request: 32 MiB of float32. With up to 512 classes, the default of 16,384 rows stays the limit."""


def max_rows(max_request_rows: int, classes: int) -> int:
    """Return the most rows of a request to a model: `max_request_rows`, or fewer for a model with many classes."""
    return max(1, min(max_request_rows, _MAX_SCORES // max(1, classes)))
