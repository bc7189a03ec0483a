"""Test what the service says about files that ONNX Runtime cannot load."""

import onnx
import onnxruntime as ort
import pytest
from foreign_models import write_foreign, write_model
from kinds_of_files import KINDS
from onnx import helper
from sketchbatch_service.engines.load_errors import why_not_loaded
from sketchbatch_service.errors import ModelRefused
from sketchbatch_service.models.loader import LoadOptions, load_models

LOADABLE = ("an ONNX model", "a model in ONNX Runtime's own format")


def refusal(path) -> str:
    """Return the error of a start with `path`, without the path in front."""
    with pytest.raises(ModelRefused) as caught:
        load_models(path, LoadOptions(provider="cpu", threads=1))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


EXPORT = "export the model as .onnx with the tool that made it"


@pytest.mark.parametrize("name", [name for name in KINDS if name not in LOADABLE])
def test_a_file_of_another_kind_is_named(tmp_path, name):
    """The service says what a file is that is not a model, whatever its name, and what to do with it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(KINDS[name])
    said = refusal(path)
    assert said.startswith(f"expected an ONNX model, got {name}")
    assert "drawing" not in said
    assert "ONNXRuntimeError" not in said


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a git LFS pointer", "; run `git lfs pull`"),
        ("a Keras model (.keras)", "; `sketchbatch-train adapt {} --labels LABELS --output model.onnx` makes"),
        ("an HDF5 file, such as a Keras model (.h5)", "; `sketchbatch-train adapt {} --labels LABELS --output"),
        ("a PyTorch file", "; load it in PyTorch and write it with torch.onnx.export"),
        ("an empty file", "; copy or download it again"),
    ],
)
def test_the_remedy_can_be_copied(tmp_path, name, remedy):
    """The message about a file that another tool wrote has the command that makes a model file of it."""
    path = tmp_path / "x.keras"
    path.write_bytes(KINDS[name])
    assert f"got {name}{remedy.format(path)}" in refusal(path)


def test_a_saved_model_folder_is_named(tmp_path):
    """A SavedModel folder in place of a repository is named, with the command that makes a model file of it."""
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    assert refusal(tmp_path).startswith(
        f"expected an ONNX model, got a SavedModel folder; `sketchbatch-train adapt {tmp_path} "
    )


def test_a_model_of_a_newer_ir_version_is_refused_in_one_short_line(tmp_path):
    """The message has both versions, ONNX Runtime's own version, and the remedy."""
    said = refusal(write_foreign("new-ir", tmp_path / "m.onnx"))
    assert said.startswith(f"its IR version is 99, ONNX Runtime {ort.__version__} takes ")
    assert said.endswith(" at most: export with an older onnx, or serve with a newer ONNX Runtime")


@pytest.mark.parametrize("domain", ["ai.onnx", "ai.onnx.ml"])
def test_a_model_of_a_newer_opset_is_refused_in_one_short_line(tmp_path, domain):
    """The message has the domain of the operators, both versions, ONNX Runtime's own version, and the remedy."""
    path = write_model(tmp_path / "m.onnx", opset=99 if domain == "ai.onnx" else 18)
    if domain != "ai.onnx":
        model = onnx.load(path)
        model.opset_import.append(helper.make_opsetid(domain, 99))
        onnx.save(model, path)
    said = refusal(path)
    assert said.startswith(f"its opset of {domain} is 99, ONNX Runtime {ort.__version__} takes ")
    assert said.endswith(" at most: export with an older opset, or serve with a newer ONNX Runtime")


@pytest.mark.parametrize("name", ["old-opset", "fits"])
def test_older_models_are_served(tmp_path, name):
    """A model of an old opset and IR version is served."""
    assert load_models(write_foreign(name, tmp_path / "m.onnx"), LoadOptions(provider="cpu", threads=1))


def test_a_cut_model_is_called_damaged(tmp_path):
    """A file that begins as an ONNX model, but cannot be parsed, is damaged or cut off."""
    path = write_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:2000])
    assert refusal(path) == "damaged or cut off, cannot be read as an ONNX model; copy or download it again"


def test_other_bytes_are_quoted(tmp_path):
    """The first bytes of a file of no known kind are quoted."""
    (tmp_path / "m.onnx").write_bytes(b"hello")
    assert refusal(tmp_path / "m.onnx") == f"expected an ONNX model, got b'hello'; {EXPORT}"


FAIL = "[ONNXRuntimeError] : 1 : FAIL : "
METHOD = "onnxruntime::Model::Model(const std::unordered_map<std::basic_string<char>, int>&, bool (*)(int)) const"
WORDS = "Unsupported model IR version: many, max supported IR version: few"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FAIL + "Load model from {} failed:Fatal error: x is no registered op", "Fatal error: x is no registered op"),
        (f"{FAIL}Load model from {{}} failed:/src/core/model.cc:256 {METHOD} Wrong (a) b.\nMore", "Wrong (a) b."),
        (FAIL + "Error: proto.cc:619 ValidatePath No such path (a)", "Error: No such path (a)"),
        (FAIL + "/a/b.h:1 void f(int", "/a/b.h:1 void f(int"),
        (FAIL + "/a/b.h:1 void a::f(int", "/a/b.h:1 void a::f(int"),
        (WORDS, WORDS),
        ("First sentence. " + "x" * 900, "First sentence. " + "x" * 284 + " ..."),
        ("", "ONNX Runtime gives no reason"),
    ],
)
def test_other_errors_lose_what_only_developers_of_onnx_runtime_need(tmp_path, error, cause):
    """Codes, signatures and places in the source of ONNX Runtime are left out; an unknown form is kept, but short."""
    path = write_model(tmp_path / "m.onnx")
    said = why_not_loaded(path, RuntimeError(error.format(path)))
    assert said == f"not a model that ONNX Runtime can load: {cause}"
