"""Define the fuzz targets that call the parsers of files and messages in the same process.

For each input, the client's or the service's parser must return a result, or raise its documented error.
The message of that error must be one line.
"""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError
from mutations import either, encode_varint, nest, of_seeds, png_chunk, text_token, zipped
from sketchbatch.openinference.v2 import open_inference_pb2 as oip
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_client.drawings.drawing import from_line, from_record
from sketchbatch_client.drawings.readers import open_bitmaps
from sketchbatch_client.errors import FileRefused, JobRefused
from sketchbatch_client.scoring.inputs import find_sources
from sketchbatch_client.scoring.manifest import Manifest
from sketchbatch_client.scoring.merge import merge
from sketchbatch_client.scoring.parts import Parts
from sketchbatch_service.api import large_field
from sketchbatch_service.api.classifier import codec
from sketchbatch_service.api.openinference import codec as tensor_codec
from sketchbatch_service.engines.cpu import Engine, open_session
from sketchbatch_service.errors import CredentialsUnusable, InvalidRequest, ModelRefused
from sketchbatch_service.models.artifact import read_artifact
from sketchbatch_service.transport.tls import ServerTls, TlsFiles
from sketchbatch_service.transport.tokens import TokenFile
from targets import Target, corpus, in_process, mutants

ROWS = 4  # number of rows that are read at the start of each file, and again at its end
PICTURE_MIB = 700  # 36 million pixels, the largest picture, at 20 bytes of memory per pixel: docs/security.md


def drawings(ending: str, *, evaluates: bool = True):
    """Return the function `Target.begin` of a target whose inputs are files of drawings.

    The names of the files end with `ending`. Each file is read in the way of `sketchbatch score`. If `evaluates` is
    true, about half of the files are read in the way of `sketchbatch evaluate` instead.
    """

    def check(data: bytes, folder: Path) -> None:
        path = folder / f"input{ending}"
        path.write_bytes(data)
        try:
            if not evaluates or zlib.crc32(data) % 2:  # equal files are always read in the same way
                for source in find_sources([str(path)], folder, lambda _: None):
                    _read_rows(source)
                return
            rows = open_bitmaps(path, skip_malformed=True)
            _check_bitmaps(rows[:ROWS], min(ROWS, len(rows)))
        except FileRefused as error:
            _check_message(error)

    return in_process(check)


def _read_rows(source) -> None:
    rows = len(source)
    for start in (0, max(0, rows - ROWS)):
        stop = min(rows, start + ROWS)
        if start < stop:
            block = source.block(start, stop)
            _check_bitmaps(block.bitmaps, len(block.rows))
            assert len(block.rows) + len(block.rejects) == stop - start
            assert block.key_ids is None or len(block.key_ids) == len(block.rows)
            for reject in block.rejects:
                json.dumps(reject, ensure_ascii=False).encode()  # `score` encodes a line of the rejects file like this
            np.asarray(block.bitmaps).sum()  # the sum reads every pixel


def _check_bitmaps(bitmaps: np.ndarray, rows: int) -> None:
    assert bitmaps.shape == (rows, 28, 28), bitmaps.shape
    assert bitmaps.dtype == np.uint8
    bitmaps.sum()


def _check_message(error: Exception) -> None:
    assert "\n" not in str(error), "the message must be one line"
    assert len(str(error)) < 2000, "the message must be short"


def line(data: bytes, folder: Path) -> None:
    """Parse one line of an .ndjson file; the demo page parses its requests with the same function."""
    try:
        from_line(data)
    except ValueError as error:
        _check_message(error)


def record(data: bytes, folder: Path) -> None:
    """Parse a record of a .bin file."""
    try:
        from_record(data)
    except ValueError as error:
        _check_message(error)


def bitmaps(data: bytes, folder: Path) -> None:
    """Parse a Classify message and decode its bitmaps.

    The service takes a large bitmaps field out of the message with `take_out`. The result must equal protobuf's.
    """
    taken = large_field.take_out(data, pb.ClassifyRequest.BITMAPS_FIELD_NUMBER)
    try:
        if taken:
            request = pb.ClassifyRequest.FromString(taken[1])
            request.bitmaps = b"".join(taken[0][-1:])
            assert request == pb.ClassifyRequest.FromString(data)
        request = codec.read(data)
        assert len(codec.decode(request, max_rows=64, classes=3)) * 784 == len(request.bitmaps)
    except (DecodeError, InvalidRequest):
        return


def tensors(data: bytes, folder: Path) -> None:
    """Parse a ModelInfer message and decode its tensor.

    The service takes large raw contents out of the message with `take_out`. The result must equal protobuf's.
    """
    taken = large_field.take_out(data, oip.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER)
    try:
        if taken:
            fields = oip.ModelInferRequest.FromString(taken[1])
            fields.raw_input_contents.extend(map(bytes, taken[0]))
            # As bytes, because NaN differs from itself.
            expected = oip.ModelInferRequest.FromString(data).SerializeToString(deterministic=True)
            assert fields.SerializeToString(deterministic=True) == expected
        request = tensor_codec.read(data)
        assert 0 <= tensor_codec.top_k(request.fields, classes=3) <= 3
        assert tensor_codec.timeout_s(request.fields) > 0
        assert tensor_codec.is_quick(request, rows=64) in (True, False)
        assert len(tensor_codec.decode(request, max_rows=64)) == request.fields.inputs[0].shape[0]
    except (DecodeError, InvalidRequest):
        return


def manifest(data: bytes, folder: Path) -> None:
    """Read the input as the manifest of a finished job and merge its output; then read it as an unfinished job's."""
    output = folder / "labels.csv"
    output.write_bytes(b"source,row\n")
    (folder / "labels.csv.manifest.json").write_bytes(data)
    parts = Parts(folder)
    (folder / "part-0000000.arrow").touch()
    (folder / "manifest.json").write_bytes(data)
    try:
        if found := Manifest.read(output):
            plan = found.plan
            _ = plan.parts, plan.all_rows, plan.segments(0), plan.options
            merge([output], folder / "merged.csv")
    except (JobRefused, FileRefused) as error:
        _check_message(error)
    try:
        parts.earlier_plan()
    except JobRefused as error:
        _check_message(error)


def part(data: bytes, folder: Path) -> None:
    """Read the file of a part of a scoring job.

    If the file is damaged, `digest` must return None. If `digest` returns a digest, all rows must be readable.
    """
    (folder / "part-0000000.arrow").write_bytes(data)
    parts = Parts(folder)
    if parts.digest(0) is not None:
        rows = parts.read(0).rows
        rows.validate(full=True)
        rows.to_pydict()


def model(data: bytes, folder: Path) -> None:
    """Load a model file and make one model call, or check the message with which the file is refused.

    The metadata of an accepted file must fit into the protobuf message `Model`.
    """
    path = folder / "model.onnx"
    path.write_bytes(data)
    try:
        session = open_session(path)
        artifact = read_artifact(path, session)
        Engine(session, classes=len(artifact.labels), max_batch_rows=16).warm_up()
    except ModelRefused as error:
        _check_message(error)
        return
    metrics = struct_pb2.Struct()
    metrics.update(artifact.metrics)
    description = pb.Model(labels=artifact.labels, created=artifact.created, licence=artifact.licence, metrics=metrics)
    pb.Model.FromString(description.SerializeToString())
    pb.Model(name=artifact.name, version=artifact.version)


def described(chance) -> bytes:
    """Make a valid model file and append one hostile metadata entry: a key and a value.

    ONNX stores such entries in field 14 of its ModelProto message.
    """
    key = chance.choice((b"labels", b"metrics", b"metrics", b"name", b"version", b"created", b"licence", b"rejection"))
    texts = (
        b'["ant", "bee", "cow"]',
        b'{"accuracy": 0.9, "rows": 10, "nested": {"of": [1, 2, null]}}',
        b'{"rows": 10, "unknown_rows": 5, "auroc": 0.9, "thresholds": '
        b'[{"coverage": 0.9, "score": 0.5, "accuracy": 0.8, "unknown_rejected": 0.4}]}',
        b"1",
        b"\xff\xfe",
    )
    key = b"sketchbatch." + key
    value = of_seeds(texts, text_token, nest)(chance)
    entry = b"\x0a" + encode_varint(len(key)) + key + b"\x12" + encode_varint(len(value)) + value
    return chance.choice(corpus("onnx")) + b"\x72" + encode_varint(len(entry)) + entry


def tokens(data: bytes, folder: Path) -> None:
    """Read a token file, then check the tokens of three kinds of calls.

    The calls have the file's first bytes as token, an unknown token, or no token.
    """
    (folder / "tokens").write_bytes(data)
    text = data[:100].decode("latin-1")
    try:
        file = TokenFile(folder / "tokens", frozenset())
    except CredentialsUnusable as error:
        _check_message(error)
        return
    for value in (text, f"Bearer {text}", f"Bearer  {text}="):
        file.rejection_reason(b"/a/b", [("authorization", value)])
    assert file.rejection_reason(b"/a/b", [])
    assert file.rejection_reason(b"/a/b", [("authorization", f"Bearer 'unknown' {text}")])


def certificates(data: bytes, folder: Path) -> None:
    """Load a certificate, its key and a certificate authority from three files.

    The first two NUL bytes of the input separate the contents of the three files.
    """
    parts = [*data.split(b"\0", 2), b"", b""]
    files = {name: folder / f"{name}.pem" for name in ("cert", "key", "client_ca")}
    for path, content in zip(files.values(), parts, strict=False):
        path.write_bytes(content)
    try:
        ServerTls(TlsFiles(**files))
    except CredentialsUnusable:
        return


def zigzag(chance) -> bytes:
    """Make a line of at most 4 MiB with a stroke that crosses the drawing as often as possible."""
    points = chance.choice((1_000, 20_000, 400_000))
    xs, ys = ["0", chance.choice(("9", "255", "999"))] * (points // 2), map(str, range(points))
    if chance.random() < 0.3:
        ys = iter(["0", "255"] * (points // 2))
    return f'{{"drawing":[[[{",".join(xs)}],[{",".join(ys)}]]]}}\n'.encode()[: 1 << 22]


def long_record(chance) -> bytes:
    """Make a .bin record of many long strokes."""
    strokes = chance.choice((1, 3, 30))
    points = chance.choice((1, 1000, 65535))
    stroke = struct.pack("<H", points) + bytes([0, 255]) * points
    return struct.pack("<Q2sbIH", 1, b"DE", 1, 0, strokes) + stroke * strokes


def mostly(usual, slow, share: float):
    """Return a function that makes one input per call, with `slow` in the fraction `share` of calls, else `usual`."""
    return lambda chance: (slow if chance.random() < share else usual)(chance)


_npy = mostly(mutants("npy", text_token), mutants("npy", nest), 0.02)
_json = (text_token, text_token, nest)

FILES = [
    Target(name="npy", share=110, make=_npy, begin=drawings(".npy")),
    Target(
        name="npz",
        share=90,
        make=mostly(either(mutants("npz"), zipped(_npy, ("a.npy", "b.npy", "a.txt"))), mutants("npz-large"), 0.003),
        begin=drawings(".npz", evaluates=False),
    ),
    Target(
        name="simplified",
        share=60,
        make=mostly(mutants("simplified", *_json), zigzag, 0.0005),
        begin=drawings(".ndjson"),
    ),
    Target(name="raw", share=50, make=mostly(mutants("raw", *_json), zigzag, 0.0005), begin=drawings(".ndjson")),
    Target(name="bin", share=80, make=mostly(mutants("bin"), long_record, 0.0005), begin=drawings(".bin")),
    Target(name="line", share=160, make=mutants("simplified", *_json), begin=in_process(line)),
    Target(name="record", share=100, make=mutants("bin"), begin=in_process(record)),
    Target(
        name="png",
        share=12,
        make=mostly(mutants("png", png_chunk), mutants("png-large", png_chunk), 0.003),
        begin=drawings(".png"),
        memory_mib=PICTURE_MIB,
    ),
    Target(name="jpeg", share=12, make=mutants("jpeg"), begin=drawings(".jpg"), memory_mib=PICTURE_MIB),
    Target(name="parquet", share=10, make=mutants("parquet"), begin=drawings(".parquet", evaluates=False)),
    Target(name="manifest", share=50, make=mutants("manifest", *_json), begin=in_process(manifest)),
    Target(name="part", share=15, make=mutants("part"), begin=in_process(part)),
    Target(name="bitmaps", share=120, make=mutants("classify"), begin=in_process(bitmaps)),
    Target(name="tensors", share=50, make=mutants("infer"), begin=in_process(tensors)),
    Target(name="onnx", share=4, make=either(mutants("onnx"), described), begin=in_process(model)),
    Target(name="tokens", share=30, make=mutants("tokens"), begin=in_process(tokens)),
    Target(name="tls", share=2, make=mutants("tls"), begin=in_process(certificates)),
]
