"""Test which model files are served, which files are refused, and which model a request gets."""

import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx_models import LABELS, write_model
from sketchbatch_service.app import server
from sketchbatch_service.app.worker import Worker
from sketchbatch_service.engines.cpu import CPU, Engine, available_cpus, open_session
from sketchbatch_service.engines.cuda_device import Device
from sketchbatch_service.errors import ModelNotFound, ModelRefused, ProviderMissing
from sketchbatch_service.models.loader import LoadOptions, load_models
from sketchbatch_service.settings import Settings


def test_a_model_file_describes_itself(tmp_path):
    """The name, version, labels, metrics and licence of a model are read from `metadata_props` of its model file."""
    described = {
        "sketchbatch.name": "farm",
        "sketchbatch.version": "7",
        "sketchbatch.created": "2026-11-22T00:00:00+00:00",
        "sketchbatch.metrics": json.dumps({"accuracy": 0.5}),
        "sketchbatch.licence": "CC0",
    }
    model = load_models(write_model(tmp_path / "m.onnx", metadata=described), LoadOptions()).get("", "")
    assert (model.name, model.version, model.provider) == ("farm", "7", CPU)
    assert model.artifact.labels == LABELS
    assert model.artifact.metrics == {"accuracy": 0.5}
    assert (model.artifact.licence, len(model.artifact.digest)) == ("CC0", 64)


def test_a_file_needs_only_labels(tmp_path):
    """A model file without name and version in its metadata gets the name of the file and version 1."""
    model = load_models(write_model(tmp_path / "mine.onnx"), LoadOptions()).get("", "")
    assert (model.name, model.version, model.artifact.metrics) == ("mine", "1", {})


@pytest.mark.parametrize(
    ("unfit", "message"),
    [
        ({"input_type": TensorProto.FLOAT}, r"got bitmaps: float32 \(N, 28, 28\)"),
        ({"input_shape": ("n", 28, 28, 1)}, r"got bitmaps: uint8 \(N, 28, 28, 1\)"),
        ({"input_shape": (8, 28, 28)}, r"got bitmaps: uint8 \(8, 28, 28\)"),
        ({"labels": None}, r"no labels in metadata \(optimisers and converters drop them\)"),
        ({"labels": ["ant", "bee"]}, "2 labels for 3 classes"),
        ({"labels": ["ant", "ant", "bee"]}, "label 1 'ant' occurs twice"),
        ({"labels": []}, r"labels must be a JSON list of names, got '\[\]'"),
        ({"open_classes": True, "labels": ["ant", "bee"]}, r"scores of 1 rows must be \(1, 2\), got \(1, 3\)"),
        ({"labels": "ant, bee"}, "labels must be JSON, got 'ant, bee'"),
        ({"labels": {"ant": 0}}, "labels must be a JSON list of names, got"),
        ({"metadata": {"sketchbatch.metrics": "good"}}, "metrics must be JSON, got 'good'"),
        ({"metadata": {"sketchbatch.training_digests": "AAAA"}}, "training_digests must be base64 of at most 65,536"),
        ({"metadata": {"sketchbatch.training_digests": "a b"}}, "training_digests must be base64 of at most 65,536"),
        ({"metadata": {"sketchbatch.metrics": "[" * 100_000}}, "metrics must be JSON, got"),
        ({"metadata": {"sketchbatch.rejection": "0.95"}}, "sketchbatch.rejection must be a JSON object, got '0.95'"),
        ({"metadata": {"sketchbatch.rejection": "[" * 100_000}}, "rejection must be JSON, got"),
        ({"metadata": {"sketchbatch.rejection": '{"thresholds": []}'}}, "rejection thresholds must be a list"),
    ],
)
def test_a_file_with_an_incorrect_signature_is_refused(tmp_path, unfit, message):
    """A model file is refused if its input, output, labels, metrics or rejection thresholds are incorrect.

    The error names the file, the incorrect part, the expected value and the actual value.
    """
    path = write_model(tmp_path / "odd.onnx", **unfit)
    with pytest.raises(ModelRefused, match=message) as caught:
        load_models(path, LoadOptions())
    assert str(path) in str(caught.value)


def test_a_path_without_a_model_is_refused(tmp_path):
    """A missing file, an empty repository and a file that is not ONNX are refused with an error that names the path."""
    with pytest.raises(ModelRefused, match="no such model file"):
        load_models(tmp_path / "none.onnx", LoadOptions())
    with pytest.raises(ModelRefused, match=r"NAME/VERSION/model\.onnx"):
        load_models(tmp_path, LoadOptions())
    (tmp_path / "page.onnx").write_text("<!doctype html>")
    with pytest.raises(ModelRefused, match=r"page\.onnx: expected an ONNX model, got a web page"):
        load_models(tmp_path / "page.onnx", LoadOptions())


@pytest.mark.parametrize("place", ["/dev/zero", "{folder}/weights", "../weights", "link"])
def test_a_model_with_weights_outside_its_folder_is_refused(tmp_path, place):
    """A model whose weights are in a file outside its folder is refused.

    The path of such a file may be absolute, lead through the parent folder, or lead through a link.
    """
    (tmp_path / "weights").write_bytes(bytes(784 * 3 * 4))
    path = write_model(tmp_path / "models" / "m.onnx")
    (path.parent / "link").symlink_to(tmp_path / "weights")
    model = onnx.load(path)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place.format(folder=tmp_path))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match=r"m\.onnx: not a model that ONNX Runtime can load: .*External data path"):
        load_models(path, LoadOptions())


def test_a_model_with_custom_operators_is_refused(tmp_path):
    """A model with custom operators is refused, because the service loads no operator libraries."""
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    onnx.save(model, path)
    with pytest.raises(ModelRefused, match=r"com\.example"):
        load_models(path, LoadOptions())


def test_a_repository_serves_every_version_and_the_newest_by_default(tmp_path):
    """A repository serves every version of every model; requests without a version use the newest version.

    The folders determine the name and the version of a model. Versions are numbers, so version 10 is newer than version
    9, and a folder with another name, such as `draft`, is ignored.
    """
    for name, version in (("farm", "9"), ("farm", "10"), ("zoo", "1"), ("zoo", "draft")):
        write_model(tmp_path / name / version / "model.onnx", metadata={"sketchbatch.name": "other"})
    models = load_models(tmp_path, LoadOptions(default_model="zoo"))
    assert [(m.name, m.version) for m in models] == [("zoo", "1"), ("farm", "10"), ("farm", "9")]
    assert models.get("", "").name == "zoo"
    assert models.get("farm", "").version == "10"
    assert models.get("farm", "9").version == "9"
    assert models.versions("farm") == ["10", "9"]
    with pytest.raises(
        ModelNotFound, match=r"'farm' version '8'; there are: zoo \(version 1\); farm \(version 10, 9\)"
    ):
        models.get("farm", "8")
    with pytest.raises(ModelRefused, match="no model 'pond' to be the default"):
        load_models(tmp_path, LoadOptions(default_model="pond"))


def test_auto_uses_the_cpu_without_a_gpu(tiny_model):
    """Provider `auto` uses the CPU on a machine without a GPU, even with a CUDA build of ONNX Runtime."""
    with suppress(ProviderMissing):
        pytest.skip(f"this machine has a GPU: {Device.cuda()}")
    assert load_models(tiny_model, LoadOptions(provider="auto")).get("", "").provider == CPU


@pytest.mark.parametrize("has_spare_cpus", [True, False])
def test_a_thread_polls_during_quick_calls_if_a_cpu_is_free(tiny_model, has_spare_cpus):
    """For a model with quick batches, a thread polls while the pool is saturated, but only if a CPU is free.

    Otherwise, polling would take CPU time from the model calls.
    """
    model = load_models(tiny_model, LoadOptions(provider="cpu", threads=1, has_spare_cpus=has_spare_cpus)).get("", "")
    assert model.polls_while_saturated is has_spare_cpus


@pytest.mark.parametrize(
    ("threads", "workers", "slots", "has_spare"),
    [(0, 1, 4, False), (0, 3, 1, True), (0, 2, 2, False), (1, 1, 1, True), (2, 2, 2, False), (8, 1, 8, False)],
)
def test_a_cpu_is_free_if_all_workers_together_use_fewer(monkeypatch, threads, workers, slots, has_spare):
    """A CPU is free for polling if the model calls of all workers together use fewer CPUs than are available.

    The CPUs are divided equally between the workers; the remainder of the division is free.
    """
    monkeypatch.setattr(server, "available_cpus", lambda: 4)
    settings = Settings(model=Path("models"), threads=threads, workers=workers)
    options = server._load_options(settings, Worker(count=workers))
    assert (options.threads, options.has_spare_cpus) == (slots, has_spare)


def test_scores_equal_onnx_runtimes(tiny_model, noise):
    """The engine returns the scores of ONNX Runtime unchanged."""
    engine = Engine(open_session(tiny_model), classes=3, max_batch_rows=8)
    expected = ort.InferenceSession(tiny_model, providers=[CPU]).run(["scores"], {"bitmaps": noise(5)})[0]
    assert np.array_equal(engine.predict(noise(5)), expected)


def test_a_model_that_fails_in_warm_up_is_refused(tmp_path):
    """A model that loads but cannot run is refused before the service reports SERVING."""
    path = write_model(tmp_path / "wide.onnx", flat_width=785)
    with pytest.raises(ModelRefused, match="fails on 1 row"):
        load_models(path, LoadOptions())


def test_the_number_of_cpus_is_plausible():
    """The number of available CPUs is at least one, and at most the number of CPUs of the machine."""
    assert 1 <= available_cpus() <= os.cpu_count()


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"system.slice/cpu.max": "50000 100000", "system.slice/sketchbatch.service/cpu.max": "max 100000"}, 1),
        ({"system.slice/sketchbatch.service/cpu.max": "100000 100000"}, 1),
        ({"cpu/jobs/cpu.cfs_quota_us": "50000", "cpu/jobs/cpu.cfs_period_us": "100000"}, 1),
        ({"other.slice/cpu.max": "50000 100000"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_cgroup_limits_the_cpus(tmp_path, files, cpus):
    """The quotas of the process' cgroup, version 1 or 2, and of its parents limit the number of CPUs.

    None means that there is no limit.
    """
    own = tmp_path / "own"
    own.write_text("5:cpuacct,cpu:/jobs/1\n4:memory:/other.slice\n0::/system.slice/sketchbatch.service\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert available_cpus(tmp_path, own) == (cpus or len(os.sched_getaffinity(0)))
