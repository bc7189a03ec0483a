"""Draws what evaluation.html.j2 shows: reliability as shapes for an SVG, a confusion matrix, drawings as pictures."""

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..html_page import data_url
from .stats.calibration import BINS, Calibration
from .stats.metrics import Confusion, confused_pairs

MOST_WRITTEN = 20
"""Classes in a confusion matrix with its counts written in; beyond it they would be too small to read."""

_WHITE = np.array([255, 255, 255])
_PALE = np.array([126, 166, 247])  # the fullest cell; black on it has a contrast of 8
_DEEP = np.array([30, 58, 138])  # the fullest pixel, with nothing written on it


class Bar(NamedTuple):
    """One bin of the reliability plot, each number a share of the plot's side."""

    left: float
    confidence: float
    accuracy: float
    height: float
    """Rows, beside the fullest bin's."""
    rows: int


def reliability_bars(calibration: Calibration) -> list[Bar]:
    """The bins that hold rows, from the least sure."""
    left = np.flatnonzero(calibration.bin_rows) / BINS
    height = calibration.rows / calibration.rows.max()
    columns = (left, calibration.confidence, calibration.accuracy, height, calibration.rows)
    return [Bar(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def confusion_table(confusion: Confusion, labels: tuple[str, ...]) -> dict[str, Any]:
    """The matrix with counts: of all classes that occur, or of those most often confused where these are many."""
    columns = _shown(confusion)
    lines = [
        {"label": labels[row], "cells": _cells(confusion[row], row, columns)} for row in columns if confusion[row].any()
    ]
    return {"columns": [labels[column] for column in columns], "lines": lines}


def confusion_picture(confusion: Confusion) -> str:
    """The whole matrix, a pixel a cell, by the root of its share, so that small ones are seen: an <img> source."""
    share = np.sqrt(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1))
    return _png((_WHITE + share[..., None] * (_DEEP - _WHITE)).astype(np.uint8))


def picture(bitmap: NDArray[np.uint8]) -> str:
    """A drawing, ink on paper: an <img> source."""
    return _png(255 - bitmap)


def _shown(confusion: Confusion) -> list[int]:
    occurs = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1)).tolist()
    if len(occurs) <= MOST_WRITTEN:
        return occurs
    kept: dict[int, None] = {}
    for pair in confused_pairs(confusion, confusion.size):
        if len(kept.keys() | set(pair)) > MOST_WRITTEN:
            break
        kept.update(dict.fromkeys(pair))
    return sorted(kept)


def _cells(counts: NDArray[np.int64], row: int, columns: list[int]) -> list[dict[str, Any]]:
    shares = (counts / counts.sum()).tolist()
    return [
        {
            "count": int(counts[column]),
            "share": shares[column],
            "colour": _blended(shares[column]),
            "is_hit": row == column,
        }
        for column in columns
    ]


def _blended(share: float) -> str:
    return "rgb({} {} {})".format(*(_WHITE + share * (_PALE - _WHITE)).round().astype(int))


def _png(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image  # which only a page needs

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return data_url(file.getvalue(), "image/png")
