"""The first bytes of files of many kinds, and how error messages name each kind."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile


def zipped(*names: str) -> bytes:
    """Return a zip archive with members of these names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"contents")
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.npy"))
    return file.getvalue()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
ZIP = zipped("a.txt")

KINDS: dict[str, bytes] = {
    "a git LFS pointer": LFS_POINTER,
    "a git-annex pointer": b"/annex/objects/SHA256E-s9--4d7a.npy\n",
    "a web page": WEB_PAGE,
    "an empty file": b"",
    "an XML document": b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchKey</Code></Error>",
    "an SVG picture": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "JSON": b'{\n  "word": "cat"',
    "a JSON list": b'[{"word": "cat"}]',
    "text in UTF-16": '{"word": "cat"}\n'.encode("utf-16"),
    "a zip archive": ZIP,
    "a Keras model (.keras)": zipped("metadata.json", "config.json", "model.weights.h5"),
    "a NumPy archive (.npz)": zipped("arr_0.npy"),
    "a PyTorch file": zipped("archive/data.pkl", "archive/version"),
    "an Office document": zipped("[Content_Types].xml", "xl/workbook.xml"),
    "an HDF5 file, such as a Keras model (.h5)": b"\x89HDF\r\n\x1a\n" + bytes(30),
    "a PyTorch file of version 1.5 or older": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2),
    "a Python pickle": pickle.dumps({"drawings": [1, 2, 3]}),
    "a MATLAB file": b"MATLAB 5.0 MAT-file, Platform: GLNXA64",
    "a gzip file": gzip.compress(b"{}"),
    "a Zstandard file": b"\x28\xb5\x2f\xfd\x04\x58\x11",
    "a bzip2 file": bz2.compress(b"{}"),
    "an xz file": lzma.compress(b"{}"),
    "an LZ4 file": b"\x04\x22\x4d\x18\x64\x40",
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\x00\x04",
    "a RAR archive": b"Rar!\x1a\x07\x01\x00",
    "a tar archive": _tar(),
    "a PDF document": b"%PDF-1.7\n",
    "a PNG picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "a JPEG picture": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a WebP picture": b"RIFF\x28\x13\x00\x00WEBPVP8 ",
    "a GIF picture": b"GIF89a\x01\x00",
    "a BMP picture": b"BM\x36\x0c\x00\x00\x00\x00\x00\x00\x36\x00",
    "a TIFF picture": b"II*\x00\x08\x00\x00\x00",
    "a Photoshop picture": b"8BPS\x00\x01",
    "a JPEG 2000 picture": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    "a JPEG XL picture": b"\x00\x00\x00\x0cJXL \r\n\x87\n",
    "a HEIC picture": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    "an AVIF picture": b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00",
    "a video": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00",
    "a Parquet file": b"PAR1\x15\x04\x15\x10",
    "an Arrow file": b"ARROW1\x00\x00",
    "an Arrow stream": b"\xff\xff\xff\xff\xa8\x00\x00\x00\x10\x00",
    "an SQLite database": b"SQLite format 3\x00",
    "a NumPy array (.npy)": b"\x93NUMPY\x01\x00v\x00",
    "a TensorFlow Lite model": b"\x1c\x00\x00\x00TFL3\x14\x00",
    "a model in ONNX Runtime's own format": b"\x18\x00\x00\x00ORTM\x00\x00",
    "the saved_model.pb of a SavedModel": b"\x08\x01\x12\xf4\x01\x0a\x10\x22\x05serve\x2a\x062.21.0",
    "a safetensors file": (300).to_bytes(8, "little") + b'{"__metadata__":{}}',
    "an ONNX model": b"\x08\x09\x12\x07pytorch\x1a\x052.9.0\x3a\xff\x01\x0a\x05",
    "an IDX file": b"\x00\x00\x08\x03\x00\x00\xea\x60\x00\x00\x00\x1c\x00\x00\x00\x1c",
}
"""The beginning of a file of each kind, by the name of the kind in messages."""
