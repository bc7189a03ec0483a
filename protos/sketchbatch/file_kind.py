"""Tell what a file is by its first bytes, and what to do with it: for error messages about a file of the wrong kind.

Flow: fixed bytes at a fixed place -> zip archives by their first member -> text -> messages of protobuf, which have no
signature. The client, the service and the trainer use this module, so it imports only the standard library.
"""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ONNX_MODEL = "an ONNX model"  # the name of the kind that `sketchbatch-serve` serves
KERAS_MODELS = ("a Keras model (.keras)", "an HDF5 file, such as a Keras model (.h5)")
ZIP_ARCHIVE = "a zip archive"  # of any contents
HEAD_BYTES = 512  # first bytes of a file that `describe` needs: tar has its signature at byte 257

_ADAPT = "`sketchbatch-train adapt FILE --labels LABELS --output model.onnx` makes a model file of it"
_EXPORT = "load it in PyTorch and write it with torch.onnx.export"
_FETCH = "copy or download it again"
_TO_PNG = "save it as a PNG or JPEG"
_TO_NPY = "save its drawings as a .npy of uint8 (rows, 28, 28)"


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is. `str` gives both fields: "a git LFS pointer; run `git lfs pull`"."""

    name: str  # with its article: "a git LFS pointer"
    remedy: str  # what a user does with such a file, as an imperative or a command
    suffix: str = ""  # the ending under which `sketchbatch score` reads such a file; empty = it does not
    unpack: str = ""  # the command that writes the contents of a packed file to standard output; empty = not packed

    def __str__(self) -> str:
        return f"{self.name}; {self.remedy}"

    @property
    def may_have_drawings(self) -> bool:
        """Whether such a file may have drawings: it can be read, or the remedy makes a readable file of it."""
        return bool(self.suffix or self.unpack) or self.remedy.startswith(("save ", "unpack ", "write "))


def describe(head: bytes, file: str = "FILE") -> FileKind | None:
    """Return what the file is that begins with `head`; None if its first bytes do not tell.

    Args:
        head: The first HEAD_BYTES of the file, or the whole file if it is shorter. No bytes are an empty file.
        file: The name of the file in the commands of the remedy.
    """
    kind = next((kind for find in _FINDERS if (kind := find(head))), None)
    if not kind:
        return None
    quoted = shlex.quote(file) if file != "FILE" else file
    return FileKind(kind.name, kind.remedy.replace("FILE", quoted), kind.suffix, kind.unpack.replace("FILE", quoted))


def describe_path(path: Path) -> FileKind | None:
    """Return what the file or folder at `path` is; None if it is missing, a pipe, or its first bytes do not tell.

    Raises OSError if the file cannot be read.
    """
    if (path / "saved_model.pb").is_file():
        return FileKind("a SavedModel folder", _ADAPT.replace("FILE", shlex.quote(str(path))))
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return describe(file.read(HEAD_BYTES), str(path))


def _readable(name: str, suffix: str) -> FileKind:
    return FileKind(name, f"`sketchbatch score` reads it under the ending {suffix}", suffix)


def _packed(name: str, unpack: str) -> FileKind:
    return FileKind(name, f"unpack it: `{unpack}` writes its contents", unpack=unpack)


_EMPTY = FileKind("an empty file", _FETCH)
_WEB_PAGE = FileKind("a web page", _FETCH)
_XML = FileKind("an XML document, such as the error message of a server", _FETCH)
_SVG = FileKind("an SVG picture", _TO_PNG)
_JSON = FileKind("JSON", "`sketchbatch score` reads drawings, one per line, under the ending .ndjson", ".ndjson")
_LINES = "write one drawing per line, as .ndjson: `jq -c '{}' FILE` does that"
_JSON_LIST = FileKind("a JSON list", _LINES.format(".[]"))
_JSON_STROKES = FileKind("a JSON list of strokes", _LINES.format("{drawing: .}"))
_JSON_LIST_OF_STROKES = FileKind("a JSON list of lists of strokes", _LINES.format(".[] | {drawing: .}"))
_UTF_16 = FileKind("text in UTF-16", "convert it to UTF-8: `iconv -f UTF-16 -t UTF-8 FILE`")
_KERAS = FileKind(KERAS_MODELS[0], _ADAPT)
_PYTORCH = FileKind("a PyTorch file", _EXPORT)
_NPZ = _readable("a NumPy archive (.npz)", ".npz")
_OFFICE = FileKind("an Office document", _TO_NPY)
_ZIP = FileKind(ZIP_ARCHIVE, "unpack it: `unzip FILE`")
_PICKLE = FileKind("a Python pickle", _TO_NPY + "; opening a pickle can run programs")
_ARROW_STREAM = FileKind("an Arrow stream", "write it as Parquet")
_WEBP = _readable("a WebP picture", ".webp")
_BMP = _readable("a BMP picture", ".bmp")
_TIFF = _readable("a TIFF picture", ".tif")
_VIDEO = FileKind("a video", _TO_PNG)
_SAFETENSORS = FileKind("a safetensors file, which has weights but no graph", _EXPORT)
_IDX = FileKind("an IDX file, as MNIST has them", _TO_NPY)
_ONNX = FileKind(ONNX_MODEL, "`sketchbatch-serve --model FILE` serves it")
_SAVED_MODEL = FileKind("the saved_model.pb of a SavedModel", _ADAPT.replace("FILE", "FOLDER"))

_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (  # place, bytes there, kind
    (0, b"version https://git-lfs.github.com/spec/", FileKind("a git LFS pointer", "run `git lfs pull`")),
    (0, b"/annex/objects/", FileKind("a git-annex pointer", "run `git annex get`")),
    (0, b"\x93NUMPY", _readable("a NumPy array (.npy)", ".npy")),
    (0, b"PAR1", _readable("a Parquet file", ".parquet")),
    (0, b"PARE", FileKind("an encrypted Parquet file", "write it without encryption")),
    (0, b"ARROW1", FileKind("an Arrow file", "write it as Parquet")),
    (0, b"FEA1", FileKind("a Feather file", "write it as Parquet")),
    (0, b"SQLite format 3\0", FileKind("an SQLite database", _TO_NPY)),
    (0, b"MATLAB ", FileKind("a MATLAB file", _TO_NPY)),
    (0, b"\x89HDF\r\n\x1a\n", FileKind(KERAS_MODELS[1], _ADAPT)),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", FileKind("a PyTorch file of version 1.5 or older", _EXPORT)),
    (4, b"TFL3", FileKind("a TensorFlow Lite model", "export the model that it was made from as ONNX")),
    (4, b"ORTM", FileKind("a model in ONNX Runtime's own format", "serve the .onnx file that it was made from")),
    (0, b"\x1f\x8b\x08", _packed("a gzip file", "gzip -dc FILE")),
    (0, b"\x28\xb5\x2f\xfd", _packed("a Zstandard file", "zstd -dc FILE")),
    (0, b"BZh", _packed("a bzip2 file", "bzip2 -dc FILE")),
    (0, b"\xfd7zXZ\0", _packed("an xz file", "xz -dc FILE")),
    (0, b"\x04\x22\x4d\x18", _packed("an LZ4 file", "lz4 -dc FILE")),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", "unpack it: `7z x FILE`")),
    (0, b"Rar!\x1a\x07", FileKind("a RAR archive", "unpack it: `unrar x FILE`")),
    (257, b"ustar", FileKind("a tar archive", "unpack it: `tar -xf FILE`")),
    (0, b"%PDF-", FileKind("a PDF document", "save each drawing as a PNG")),
    (0, b"\x89PNG\r\n\x1a\n", _readable("a PNG picture", ".png")),
    (0, b"\xff\xd8\xff", _readable("a JPEG picture", ".jpg")),
    (0, b"GIF8", _readable("a GIF picture", ".gif")),
    (0, b"II*\0", _TIFF),
    (0, b"MM\0*", _TIFF),
    (0, b"8BPS", FileKind("a Photoshop picture", _TO_PNG)),
    (0, b"\0\0\0\x0cjP  ", FileKind("a JPEG 2000 picture", _TO_PNG)),
    (0, b"\0\0\0\x0cJXL ", FileKind("a JPEG XL picture", _TO_PNG)),
    (0, b"\xff\x0a", FileKind("a JPEG XL picture", _TO_PNG)),
    *((4, b"ftyp" + brand, FileKind("an AVIF picture", _TO_PNG)) for brand in (b"avif", b"avis")),
    *((4, b"ftyp" + brand, FileKind("a HEIC picture", _TO_PNG)) for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (4, b"ftyp", _VIDEO),
)

_PICKLE_STARTS = b"\x95(]}cXUN\x8cK\x88\x89\x8aG\x8e\x85q"  # first operation of a pickle, after its protocol


def _by_signature(head: bytes) -> FileKind | None:
    if not head:
        return _EMPTY
    for place, signature, kind in _SIGNATURES:
        if head.startswith(signature, place):
            return kind
    if head.startswith(b"RIFF") and head.startswith(b"WEBP", 8):
        return _WEBP
    if head.startswith(b"\xff\xff\xff\xff") and head[4:8] > bytes(4) and head[7:8] == b"\0":  # the size of its schema
        return _ARROW_STREAM
    if head.startswith(b"BM") and head[6:10] == bytes(4):  # the file's size, then four reserved bytes
        return _BMP
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and head[2:3] in _PICKLE_STARTS and len(head) > 2:
        return _PICKLE
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:  # the length of a header in JSON
        return _SAFETENSORS
    if len(head) > 3 and head[:2] == bytes(2) and head[2] in b"\x08\x09\x0b\x0c\x0d\x0e" and 1 <= head[3] <= 4:
        return _IDX
    return None


def _zip(head: bytes) -> FileKind | None:
    """Tell a zip archive by the name of its first member: APPNOTE.TXT, 4.3.7."""
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None
    member = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if member.endswith(b".npy"):
        return _NPZ
    if member in (b"metadata.json", b"config.json", b"model.weights.h5"):
        return _KERAS
    if member.endswith((b"/data.pkl", b"/version", b"/.format_version", b"/byteorder", b"archive_format")):
        return _PYTORCH
    return _OFFICE if member in (b"[Content_Types].xml", b"mimetype", b"_rels/.rels") else _ZIP


_UTF_16_STARTS = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"[\0", b"\0[")  # byte order marks; JSON without one


def _text(head: bytes) -> FileKind | None:
    if head[:2] in _UTF_16_STARTS and b"\0" in head[2:4]:
        return _UTF_16
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    start = text[:16].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return _WEB_PAGE
    if start.startswith((b"<?xml", b"<!doctype", b"<svg", b"<error", b"<!--")):
        lower = text.lower()
        return _SVG if b"<svg" in lower else _WEB_PAGE if b"<html" in lower or b"<!doctype html" in lower else _XML
    if start.startswith(b"["):
        return _json_list(text)
    return _JSON if text.startswith(b"{") and text[1:].lstrip()[:1] in (b'"', b"}", b"") else None


def _json_list(text: bytes) -> FileKind:
    """Tell lists by their depth: a drawing is a list of strokes, each a list of two lists of coordinates."""
    depth = 0
    for byte in text:
        if byte == ord("["):
            depth += 1
        elif not bytes((byte,)).isspace():
            break
    return {3: _JSON_STROKES, 4: _JSON_LIST_OF_STROKES}.get(depth, _JSON_LIST)


def _protobuf(head: bytes) -> FileKind | None:
    """Tell ONNX's ModelProto and TensorFlow's SavedModel by their first fields."""
    if head.startswith(b"\x08\x01\x12") and b"\x0a" in head[4:9]:  # version 1, then a message that begins with field 1
        return _SAVED_MODEL
    keys = list(_keys(head))
    return _ONNX if len(keys) > 1 and keys[0] == _IR_VERSION and _ONNX_KEYS.issuperset(keys) else None


_IR_VERSION = 1 << 3
# The keys of the fields of ModelProto: numbers, and texts or messages. https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_ONNX_KEYS = {number << 3 for number in (1, 5)} | {number << 3 | 2 for number in (2, 3, 4, 6, 7, 8, 14, 20, 25, 26)}


def _keys(head: bytes) -> Iterator[int]:
    """Yield the key of each field that begins in `head`; stop behind a key that only numbers and texts do not have."""
    at = 0
    while at < len(head):
        key, at = _varint(head, at)
        yield key
        if key & 7 not in (0, 2):
            return
        value, at = _varint(head, at)
        at += value if key & 7 == 2 else 0


def _varint(head: bytes, at: int) -> tuple[int, int]:
    """Return the varint at `at`, and the place behind it; it is cut where `head` ends."""
    number = shift = 0
    while at < len(head):
        number |= (head[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if head[at - 1] < 0x80:
            break
    return number, at


_FINDERS: tuple[Callable[[bytes], FileKind | None], ...] = (_by_signature, _zip, _text, _protobuf)
