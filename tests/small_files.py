"""Contents of small files of drawings, and of a picture in a format that is not read."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

LINE = b'{"key_id": "7", "drawing": [[[0, 255], [0, 255]]]}\n'
HEIC = b"\0\0\0\x18ftypheic" + bytes(100)


def npy(rows: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((rows, 784), np.uint8))
    return file.getvalue()


def npz(rows: int) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.zeros((rows, 28, 28), np.uint8), y=np.arange(rows), large=np.zeros((2, 32, 32), np.uint8))
    return file.getvalue()


def table(rows: int) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"bitmap": [bytes(784)] * rows}), file)
    return file.getvalue()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    image = Image.new("L", (40, 40), 255)
    image.paste(0, (10, 10, 30, 20))
    image.save(file, kind)
    return file.getvalue()


DRAWINGS = {
    ".npy": npy(3),
    ".NPZ": npz(4),
    ".ndjson": LINE * 2 + b"\n no JSON\n" + LINE,
    ".jsonl": LINE,
    ".parquet": table(5),
    ".png": picture("png"),
    ".webp": picture("webp"),
    ".gif": b"GIF89a damaged",
}
"""Files with some rows, by ending; a row that is not a drawing is a reject."""
