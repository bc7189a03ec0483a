"""Test that the first bytes of a file tell its kind."""

import io
import json
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest
from foreign_models import FOREIGN, write_foreign
from kinds_of_files import KINDS
from PIL import Image, features
from pyarrow import feather, parquet
from sketchbatch_client.drawings.strokes import open_strokes
from sketchbatch_client.file_kind import HEAD_BYTES, FileKind, describe, describe_path


@pytest.mark.parametrize("name", KINDS)
def test_the_first_bytes_tell_the_kind(name):
    """Each kind is named, with what to do about it, and the whole head is not necessary."""
    kind = describe(KINDS[name][:HEAD_BYTES])
    assert kind
    assert kind.name.startswith(name)
    assert kind.remedy
    assert str(kind) == f"{kind.name}; {kind.remedy}"


def test_each_kind_has_its_own_name():
    """No two kinds of files are given the same name."""
    assert len({describe(head).name for head in KINDS.values()}) == len(KINDS)


@pytest.mark.parametrize("head", [b"countrycode,word\n", b"no drawing", b"\x00", b"P", b"\x80", b"\x08", bytes(512)])
def test_other_bytes_tell_nothing(head):
    """Bytes that many kinds of files can begin with tell nothing."""
    assert describe(head) is None


def test_no_bytes_raise_an_error():
    """For any bytes `describe` returns a kind or None and raises no error, even if a signature is cut off."""
    noise = random.Random(7)
    heads = [head[:size] for head in KINDS.values() for size in range(len(head))]
    heads += [bytes(noise.randrange(256) for _ in range(noise.randrange(40))) for _ in range(2000)]
    assert {type(describe(head)) for head in heads} == {FileKind, type(None)}


def test_bitmaps_without_a_header_are_no_other_kind():
    """Rows of pixels, blank or white, are not taken for a file with a signature."""
    assert describe(bytes([255]) * HEAD_BYTES) is None
    assert describe(bytes(HEAD_BYTES)) is None


def picture(name: str) -> bytes:
    """Return a picture in one of Pillow's formats."""
    file = io.BytesIO()
    Image.new("L", (50, 50)).save(file, name)
    return file.getvalue()


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PDF", "AVIF"])
def test_what_pillow_writes_is_told_apart(name):
    """Each of Pillow's formats has its name."""
    if name in ("WEBP", "AVIF") and not features.check(name.lower()):
        pytest.skip(f"this Pillow cannot write {name}")
    kind = describe(picture(name)[:HEAD_BYTES])
    assert kind
    assert name.lower() in kind.name.lower()


def test_what_pyarrow_numpy_and_pickle_write_is_told_apart(tmp_path):
    """Real files of the libraries that our users have are told apart."""
    table = pa.table({"a": [1]})
    parquet.write_table(table, tmp_path / "a")
    feather.write_feather(table, tmp_path / "b")
    np.savez(tmp_path / "c.npz", x=np.zeros(3))
    np.save(tmp_path / "d.npy", np.zeros(3))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / f"p{protocol}").write_bytes(pickle.dumps([np.zeros(3)], protocol))
    names = [describe_path(path).name for path in sorted(tmp_path.iterdir())]
    pickles = ["a Python pickle"] * (pickle.HIGHEST_PROTOCOL - 1)
    assert names == ["a Parquet file", "an Arrow file", "a NumPy archive (.npz)", "a NumPy array (.npy)", *pickles]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_is_told_by_its_fields(tmp_path, name):
    """An ONNX file, which has no signature, is recognised by the fields of its message."""
    kind = describe_path(write_foreign(name, tmp_path / "model.onnx"))
    assert kind
    assert kind.name == "an ONNX model"


@pytest.mark.parametrize(
    ("text", "name", "filter_"),
    [
        ('[{"drawing": [[[0, 255], [0, 9]]]}]', "a JSON list", ".[]"),
        ("[[[0, 255], [0, 9]]]", "a JSON list of strokes", "{drawing: .}"),
        ("[ [\n[0, 255], [0, 9]]]\n[[[3], [4]]]", "a JSON list of strokes", "{drawing: .}"),
        ("[[[[0, 255], [0, 9]]], [[[3], [4]]]]", "a JSON list of lists of strokes", ".[] | {drawing: .}"),
    ],
)
def test_a_list_of_strokes_has_a_remedy_that_works(tmp_path, text, name, filter_):
    """The filter for jq turns bare strokes into drawings, one per line; the test does what the filter does."""
    kind = describe(text.encode(), "a.json")
    assert kind
    remedy = f"write one drawing per line, as .ndjson: `jq -c '{filter_}' a.json` does that"
    assert (kind.name, kind.remedy) == (name, remedy)
    decoder, at, values = json.JSONDecoder(), 0, []
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        values.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    each = values if filter_ == "{drawing: .}" else [inner for value in values for inner in value]
    lines = [json.dumps(value if isinstance(value, dict) else {"drawing": value}) for value in each]
    (tmp_path / "a.ndjson").write_text("\n".join(lines) + "\n")
    assert len(open_strokes(tmp_path / "a.ndjson")) == len(each)


def test_the_shipped_models_are_onnx_models(root):
    """Every model that the repository ships is recognised as an ONNX model."""
    for path in (root / "models").glob("*/*/model.onnx"):
        assert describe_path(path).name == "an ONNX model"


def test_a_saved_model_is_a_folder(tmp_path):
    """A folder is a SavedModel if it holds a saved_model.pb; for other folders and missing files the result is None."""
    assert describe_path(tmp_path) is None
    assert describe_path(tmp_path / "none") is None
    (tmp_path / "saved_model.pb").write_bytes(KINDS["the saved_model.pb of a SavedModel"])
    kind = describe_path(tmp_path)
    assert kind
    assert kind.name == "a SavedModel folder"
    assert f"sketchbatch-train adapt {tmp_path} --labels" in kind.remedy


def test_commands_can_be_copied(tmp_path):
    """The commands of a remedy contain the name of the file, quoted for a shell."""
    kind = describe(KINDS["a gzip file"], "my cats.gz")
    assert kind
    assert kind.unpack == "gzip -dc 'my cats.gz'"
    assert kind.unpack in kind.remedy
    assert "FILE" not in str(kind)
    assert describe(KINDS["a git LFS pointer"]).remedy == "run `git lfs pull`"
