"""Tell what a file is by its first bytes, and say so in error messages; the trainer imports it from here.

The service tells it by the same functions, `sketchbatch.file_kind`.
"""

from pathlib import Path

from sketchbatch.file_kind import HEAD_BYTES as HEAD_BYTES
from sketchbatch.file_kind import KERAS_MODELS as KERAS_MODELS
from sketchbatch.file_kind import ONNX_MODEL as ONNX_MODEL
from sketchbatch.file_kind import ZIP_ARCHIVE as ZIP_ARCHIVE
from sketchbatch.file_kind import FileKind as FileKind
from sketchbatch.file_kind import describe as describe
from sketchbatch.file_kind import describe_path as describe_path

_QUOTED_BYTES = 6
_STREAMED = (".npy", ".npz", ".ndjson", ".jsonl", ".bin", ".parquet")  # that `sketchbatch score -` reads


def got(head: bytes, file: str = "FILE") -> str:
    """Return what was found in place of drawings, for a message "expected ..., got ...": what it is, and the remedy.

    `head` is the beginning of the file as for `describe`. Bytes that do not tell what the file is are quoted.
    """
    kind = describe(head[:HEAD_BYTES], file)
    if not kind:
        return f"{head[:_QUOTED_BYTES]!r}; copy or download it again"
    path = Path(file)
    inner = ".tar" if path.suffix.lower() == ".tgz" else Path(path.stem).suffix.lower()  # of cat.ndjson.gz: .ndjson
    if kind.unpack and inner in ("", *_STREAMED):
        return f"{kind.name}; unpack it, or run `{kind.unpack} | sketchbatch score -`"
    return str(kind)
