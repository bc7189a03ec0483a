"""Test models whose weights are in other files: the digest covers these files, and a change of them is detected."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import write_model
from sketchbatch_service.errors import ModelRefused
from sketchbatch_service.models import external_data, loader
from sketchbatch_service.models.artifact import digest_of
from sketchbatch_service.models.external_data import locations
from sketchbatch_service.models.loader import LoadOptions, load_models
from sketchbatch_service.models.repository import find
from sketchbatch_service.models.watcher import ModelWatcher

OPTIONS = LoadOptions(provider="cpu", threads=1)


def write_split(path: Path, *, seed: int = 7) -> Path:
    """Write a model whose weights are in the file model.onnx.data; the model file does not depend on `seed`."""
    ready = write_model(path.parent / ".ready" / path.name, seed=seed)
    onnx.save_model(
        onnx.load(ready), ready, save_as_external_data=True, location=f"{path.name}.data", size_threshold=100
    )
    for part in ready, ready.with_name(f"{path.name}.data"):
        part.rename(path.with_name(part.name))
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def external_tensor(location: str, name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def test_the_digest_of_a_single_file_is_its_sha256(tiny_model):
    """The digest of a model without external data is the SHA-256 of its file."""
    assert digest_of(tiny_model) == sha256(tiny_model.read_bytes())


def test_the_digest_covers_external_data(tmp_path):
    """Models that differ only in their external data have different digests; the file name changes no digest."""
    first, second = (write_split(tmp_path / name / "model.onnx", seed=seed) for name, seed in (("a", 1), ("b", 2)))
    assert first.read_bytes() == second.read_bytes()
    digests = [load_models(path, OPTIONS).get("", "").artifact.digest for path in (first, second)]
    assert digests[0] != digests[1]
    data = first.with_name("model.onnx.data").read_bytes()
    assert digests[0] == sha256(f"{sha256(first.read_bytes())}\n{sha256(data)}\n".encode())
    assert digest_of(first.rename(tmp_path / "a" / "other.onnx")) == digests[0]


def test_external_data_are_found_in_every_part_of_a_model():
    """Data files of initializers, attributes, sparse tensors, subgraphs and functions are found, each once, sorted."""
    sparse = onnx.SparseTensorProto(values=external_tensor("c"), indices=external_tensor("d"))
    body = helper.make_graph([], "body", [], [], [external_tensor("b")])
    constant = helper.make_node("Constant", [], ["x"], value=external_tensor("sub/e"))
    branch = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=helper.make_graph([], "e", [], []))
    plain = numpy_helper.from_array(np.zeros(3, np.float32), "plain")
    graph = helper.make_graph([constant, branch], "g", [], [], [external_tensor("a"), external_tensor("a", "v"), plain])
    graph.sparse_initializer.append(sparse)
    inner = helper.make_node("Constant", [], ["z"], value=external_tensor("f"))
    function = helper.make_function("d", "F", [], ["z"], [inner], [helper.make_opsetid("", 18)])
    model = helper.make_model(graph, functions=[function])
    assert locations(model.SerializeToString()) == ["a", "b", "c", "d", "f", "sub/e"]


def test_a_tensor_that_contains_its_data_has_no_location():
    """A tensor with a location that is not marked as external contains its data, so the file is not needed."""
    tensor = external_tensor("a")
    tensor.data_location = TensorProto.DEFAULT
    assert locations(helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()) == []


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"\x3a\xff\xff", b"\xff" * 20, b"ORTM" * 9], ids=repr)
def test_bytes_that_are_not_a_model_have_no_external_data(content):
    """Bytes that are not an ONNX model have no external data files; ONNX Runtime decides whether they are a model."""
    assert locations(content) == []


def test_the_field_numbers_are_those_of_onnx():
    """The table `CHILDREN` lists all fields of ONNX messages that lead to a tensor, except those of training graphs."""
    reaching = {"TensorProto"}
    messages = {name: getattr(onnx, name).DESCRIPTOR for name in external_data.CHILDREN}
    expected = {
        name: {
            field.number: field.message_type.name
            for field in message.fields
            if field.message_type and field.message_type.name in reaching | messages.keys()
        }
        for name, message in messages.items()
    }
    assert expected == external_data.CHILDREN
    fields = TensorProto.DESCRIPTOR.fields_by_name
    assert fields["external_data"].number == external_data.EXTERNAL_DATA
    assert fields["data_location"].number == external_data.DATA_LOCATION
    assert TensorProto.EXTERNAL == external_data.EXTERNAL


def test_a_change_of_external_data_is_activated(tmp_path):
    """If only the external data of a served version are replaced, the watcher activates the new weights."""
    path = write_split(tmp_path / "farm" / "1" / "model.onnx", seed=1)
    models = load_models(tmp_path, OPTIONS)
    old = models.get("", "")
    with models.thread_pool() as pool:
        watcher = ModelWatcher(tmp_path, OPTIONS, models, pool, every_s=0)
        stamp = find(tmp_path)[0].stamp
        other = write_split(tmp_path / ".other" / "model.onnx", seed=2)
        other.with_name("model.onnx.data").rename(path.with_name("model.onnx.data"))
        for _ in range(2):
            watcher.scan()
    assert find(tmp_path)[0].stamp == stamp
    assert models.get("", "").artifact.digest == digest_of(path) != old.artifact.digest


def test_another_file_in_the_folder_of_a_version_does_not_load_the_model_again(tmp_path):
    """If a file that is no part of the model is added to the folder of a version, the loaded model stays."""
    write_split(tmp_path / "farm" / "1" / "model.onnx")
    models = load_models(tmp_path, OPTIONS)
    old = models.get("", "")
    with models.thread_pool() as pool:
        watcher = ModelWatcher(tmp_path, OPTIONS, models, pool, every_s=0)
        (tmp_path / "farm" / "1" / "README.md").write_text("about this model")
        for _ in range(3):
            watcher.scan()
    assert models.get("", "").batcher is old.batcher


@pytest.mark.parametrize("is_repository", [True, False])
def test_external_data_that_change_while_a_model_is_loaded_are_refused(tmp_path, monkeypatch, is_repository):
    """A model whose external data are replaced during the loading is refused: its digest may be that of other data."""
    path = write_split(tmp_path / "farm" / "1" / "model.onnx", seed=1)
    other = write_split(tmp_path / ".other" / "model.onnx", seed=2).with_name("model.onnx.data")
    open_session = loader.open_session

    def open_and_replace(opened: Path):
        session = open_session(opened)
        other.rename(path.with_name("model.onnx.data"))
        return session

    monkeypatch.setattr(loader, "open_session", open_and_replace)
    with pytest.raises(ModelRefused, match="changed while it was loaded"):
        load_models(tmp_path if is_repository else path, OPTIONS)
