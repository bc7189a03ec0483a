"""Test that models are replaced while the service runs: model files are added, changed and removed.

The tests call `scan` themselves. The watcher loads a file at the second scan that finds it unchanged. The watcher
stops serving a model at the second scan that does not find its file.
"""

import hashlib
import os
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes import drawings
from onnx_models import write_model
from sketchbatch_service.api.openinference import descriptions
from sketchbatch_service.batching.leader_follower_pool import LeaderFollowerPool
from sketchbatch_service.errors import ModelNotFound, ModelRefused, ShuttingDown
from sketchbatch_service.models.loader import LoadOptions, load, load_models
from sketchbatch_service.models.registry import ServedModel
from sketchbatch_service.models.repository import find
from sketchbatch_service.models.watcher import ModelWatcher
from watched_models import OPTIONS, put, watching


@pytest.fixture
def repository(tmp_path) -> Path:
    """Return a repository with version 1 of the model `farm`."""
    put(tmp_path / "models", "farm/1")
    return tmp_path / "models"


def test_the_second_scan_activates_a_new_version(repository):
    """The second scan that finds a new version activates it, and requests without a version then use the new version.

    The old version can still be requested by its number. Each step is logged once.
    """
    with watching(repository) as watched:
        put(repository, "farm/2", seed=2)
        watched.scan(1)
        assert watched.served() == ["farm/1"]
        watched.scan(3)  # the first of them loads it, the others change nothing
        assert watched.served() == ["farm/2", "farm/1"]
        assert watched.models.get("farm", "").version == watched.models.get("", "").version == "2"
        assert watched.models.get("", "1").version == "1"
        assert watched.events() == ["model found", "model serves"]
        assert watched.models.loads == {"served": 2, "refused": 0}


def test_the_running_pool_runs_a_new_version(repository):
    """A thread pool that is already running also runs the model calls of a new version."""
    with watching(repository) as watched, watched.pool:
        put(repository, "farm/2", seed=2)
        watched.scan()
        old, new = (scores(watched.models.get("farm", version)) for version in "12")
        assert np.array_equal(new, scores(load_models(repository, OPTIONS).get("farm", "2"), runs=True))
        assert not np.array_equal(old, new)


def scores(model: ServedModel, *, runs: bool = False) -> np.ndarray:
    """Return the scores of three drawings; `runs` starts a thread pool, for a model that has no running thread pool."""
    future = model.batcher.submit(drawings(1, 2, 3))
    if runs:
        with LeaderFollowerPool([model.batcher], slots=1):
            return future.result(5).scores
    return future.result(5).scores


def test_a_file_is_not_loaded_while_it_is_copied(repository):
    """While a model file grows, because it is being copied, it is not loaded.

    If the copy stops before its end, the incomplete file is refused. The complete file is loaded.
    """
    complete = write_model(repository.parent / "complete.onnx", seed=2).read_bytes()
    path = repository / "farm" / "2" / "model.onnx"
    with watching(repository) as watched:
        path.parent.mkdir()
        for part in (100, 1000, len(complete) // 2):
            path.write_bytes(complete[:part])
            watched.scan(1)
        assert set(watched.events()) == {"model found"}
        watched.scan(3)  # copying has stalled
        assert watched.events() == ["model refused, what is served stays"]
        path.write_bytes(complete)
        watched.scan()
        assert watched.events() == ["model found", "model serves"]
        assert (watched.served(), watched.models.refused) == (["farm/2", "farm/1"], ())


def test_new_contents_of_the_same_size_and_time_are_noticed(repository, tmp_path):
    """`touch -r` and some synchronisers set back the time of the write; the file is nevertheless loaded again."""
    path = repository / "farm" / "1" / "model.onnx"
    put(tmp_path / "other", "farm/1", seed=2)
    contents = (tmp_path / "other" / "farm" / "1" / "model.onnx").read_bytes()
    before = path.stat()
    assert len(contents) == before.st_size
    with watching(repository) as watched:
        with path.open("r+b") as file:
            file.write(contents)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        watched.scan()
        assert watched.models.get("farm", "1").artifact.digest == hashlib.sha256(contents).hexdigest()


@pytest.mark.parametrize(
    ("incorrect", "cause"),
    [
        ({"labels": ["ant", "bee"]}, "2 labels for 3 classes"),
        ({"input_shape": ("n", 28, 28, 1)}, r"input must be uint8 \(N, 28, 28\)"),
        ({"flat_width": 785}, "fails on 1 row"),
        ({"scale": np.nan}, "scores of 17 of 17 trial drawings are not finite"),
    ],
)
def test_an_incorrect_version_is_refused_and_the_old_one_stays(repository, incorrect, cause):
    """If the file of a new version is incorrect, the version is refused, and the old version is still served.

    The file has too few labels, a wrong input, a graph that fails, or weights that give NaN. The reason is logged once.
    If the file changes, it is loaded again.
    """
    with watching(repository) as watched:
        put(repository, "farm/2", **incorrect)
        watched.scan(5)
        assert watched.served() == ["farm/1"]
        [refused] = [event for event in watched.log if event["event"] == "model refused, what is served stays"]
        assert (refused["model"], refused["version"], refused["log_level"]) == ("farm", "2", "error")
        assert re.search(cause, refused["cause"])
        assert [refusal.cause for refusal in watched.models.refused] == [refused["cause"]]
        put(repository, "farm/2", seed=2)
        watched.scan()
        assert (watched.served(), watched.models.refused) == (["farm/2", "farm/1"], ())
        assert watched.models.loads == {"served": 2, "refused": 1}


def test_a_version_without_softmax_is_served_with_a_warning(repository):
    """A model without softmax is served with a warning, because its highest score still belongs to the right class."""
    with watching(repository) as watched:
        put(repository, "farm/2", softmax=False)
        watched.scan()
        assert watched.served() == ["farm/2", "farm/1"]
        assert "the scores of a row are not probabilities" in watched.events()


@pytest.mark.parametrize("content", ["no model", "external weights"])
def test_the_reason_for_clients_contains_no_path(tmp_path, content):
    """RepositoryIndex returns the reason why a model is refused; this reason contains no path.

    The messages of ONNX Runtime contain paths, even paths with blanks. Clients must not see them.
    """
    repository = tmp_path / "the models"
    put(repository, "farm/1")
    path = put(repository, "farm/2")
    if content == "no model":
        path.write_text("<!doctype html>")
    else:
        model = onnx.load(path)
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=str(tmp_path / "secret place" / "weights"))
        path.write_bytes(model.SerializeToString())
    [refused] = load_models(repository, OPTIONS).refused
    reason = descriptions.refusal(refused)
    assert str(path) in refused.cause
    expected = {
        "no model": "expected an ONNX model, got ",
        "external weights": "not a model that ONNX Runtime can load: ",
    }
    assert reason.startswith(f"refused: {expected[content]}")
    assert not re.search(r"/|the models|secret", reason)


def test_the_command_for_the_operator_contains_no_path_for_clients(tmp_path):
    """The reason for clients keeps the command that mends a file, with "..." in place of its path."""
    put(tmp_path / "the models", "farm/1")
    put(tmp_path / "the models", "farm/2", labels=None)
    [refused] = load_models(tmp_path / "the models", OPTIONS).refused
    assert descriptions.refusal(refused) == (
        "refused: no labels in metadata (optimisers and converters drop them): "
        "`sketchbatch-train adapt '...' --labels FILE --output adapted.onnx` writes a file that fits"
    )


def test_a_replaced_file_replaces_its_version(repository):
    """If the file of a version is replaced, the service serves the new file under the same version.

    If the new file is incorrect or has the same bytes as the file that is served, the served model does not change.
    """
    with watching(repository) as watched:
        put(repository, "farm/1", seed=2)
        watched.scan()
        second = watched.models.get("", "")
        assert watched.events() == ["model found", "model serves", "model retired"]
        put(repository, "farm/1", labels=None)
        watched.scan()
        assert watched.models.get("", "") is second
        assert (len(watched.models.refused), watched.served()) == (1, ["farm/1"])
        put(repository, "farm/1", seed=2)
        watched.scan(3)
        assert watched.models.get("", "").batcher is second.batcher
        assert (watched.models.refused, watched.models.loads) == ((), {"served": 2, "refused": 1})


LABELS_THAT_DIFFER = {
    "another order": (("bee", "ant", "cow"), "label 0 'ant', got 'bee' (the same labels in another order)"),
    "another label": (("ant", "bee", "dog"), "label 2 'cow', got 'dog'"),
    "fewer classes": (("ant", "bee"), "3 labels, got 2"),
    "more classes": (("ant", "bee", "cow", "dog"), "3 labels, got 4"),
}


@pytest.mark.parametrize("labels", LABELS_THAT_DIFFER)
def test_a_replaced_file_with_other_labels_is_refused(repository, labels):
    """If the file of a version is replaced by a file with other labels, the new file is refused, the old one served.

    The refusal is counted and logged once, and states the difference and what to do. RepositoryIndex shows the reason.
    An acceptable file in the same place is activated.
    """
    other, difference = LABELS_THAT_DIFFER[labels]
    with watching(repository) as watched:
        old = watched.models.get("", "")
        put(repository, "farm/1", labels=other, classes=len(other))
        watched.scan(5)
        assert watched.models.get("", "") is old
        assert watched.models.loads == {"served": 1, "refused": 1}
        assert watched.events() == ["model found", "model refused, what is served stays"]
        [refused] = watched.models.refused
        expected = f"must have the labels of the served file of 'farm' version 1: {difference}; give the file a new "
        expected += "version number, or start the service with --allow-label-changes"
        assert refused.cause == f"{repository}/farm/1/model.onnx: {expected}"
        assert descriptions.refusal(refused) == f"refused: {expected}"
        put(repository, "farm/1", seed=2)
        watched.scan()
        assert watched.models.get("", "") is not old
        assert (watched.models.refused, watched.models.loads) == ((), {"served": 2, "refused": 1})


def test_other_labels_are_allowed_by_a_setting_or_a_new_version_number(repository):
    """With `--allow-label-changes`, or with a new version number, a file with other labels is activated."""
    other = {"labels": ("dog", "eel"), "classes": 2}
    with watching(repository, replace(OPTIONS, allows_label_changes=True)) as watched:
        put(repository, "farm/1", **other)
        watched.scan()
        assert watched.models.get("", "").artifact.labels == ("dog", "eel")
    put(repository, "farm/1")
    with watching(repository) as watched:
        put(repository, "farm/2", **other)
        watched.scan()
        assert watched.models.get("", "").artifact.labels == ("dog", "eel")


def test_a_single_file_with_other_labels_needs_another_version(tmp_path):
    """A single file with other labels is refused if its metadata have the same version, and activated otherwise."""
    farm = {"sketchbatch.name": "farm"}
    path = write_model(tmp_path / "m.onnx", metadata={**farm, "sketchbatch.version": "1"})
    with watching(path) as watched:
        write_model(path, labels=("bee", "ant", "cow"), metadata={**farm, "sketchbatch.version": "1"})
        watched.scan()
        assert (watched.served(), watched.models.loads["refused"]) == (["farm/1"], 1)
        write_model(path, labels=("bee", "ant", "cow"), metadata={**farm, "sketchbatch.version": "2"})
        watched.scan()
        assert (watched.served(), watched.models.refused) == (["farm/2"], ())


def test_removing_the_new_version_is_a_rollback(repository):
    """After two scans without the file of the new version, the previous version is the newest again."""
    put(repository, "farm/2", seed=2)
    with watching(repository) as watched:
        shutil.rmtree(repository / "farm" / "2")
        watched.scan(1)
        assert watched.models.get("", "").version == "2"
        watched.scan(1)
        assert watched.models.get("", "").version == "1"
        with pytest.raises(ModelNotFound, match=r"'farm' version '2'; there are: farm \(version 1\)"):
            watched.models.get("farm", "2")
        assert watched.events() == ["model retired"]


def test_a_model_name_is_added_and_removed(repository):
    """A model with a new name is served without a restart, and does not become the default model.

    When its last version is removed, requests with this name raise ModelNotFound.
    """
    with watching(repository) as watched:
        put(repository, "ants/1")
        put(repository, ".copying/1")  # the watcher skips names with a leading dot
        watched.scan()
        assert watched.served() == ["farm/1", "ants/1"]
        shutil.rmtree(repository / "ants")
        watched.scan()
        with pytest.raises(ModelNotFound, match=r"'ants'; there are: farm \(version 1\)"):
            watched.models.get("ants", "")


def test_the_last_version_of_the_default_model_stays_until_there_is_another(repository):
    """If the file of the only version of the default model is removed, this version is still served.

    Requests without a model name need the default model. The log has one warning. When the file of another version of
    the default model appears, the other version replaces it.
    """
    put(repository, "ants/1")
    with watching(repository) as watched:
        watched.models = load_models(repository, LoadOptions(default_model="farm", provider="cpu", threads=1))
        watched.watcher = ModelWatcher(repository, OPTIONS, watched.models, watched.pool, every_s=0)
        shutil.rmtree(repository / "farm")
        watched.scan(4)
        assert watched.served() == ["farm/1", "ants/1"]
        assert watched.events() == ["model kept without its file: nothing else can be the default"]
        put(repository, "farm/2", seed=2)
        watched.scan(3)
        assert watched.served() == ["farm/2", "ants/1"]
        assert watched.events() == ["model found", "model serves", "model retired"]


def test_an_unavailable_repository_changes_nothing(repository):
    """If the repository is missing, empty or unreadable, the served models stay, and the log has one warning.

    Such a repository is probably a volume that is not mounted.
    """
    put(repository, "ants/1")
    with watching(repository) as watched:
        away = repository.rename(repository.parent / "away")
        watched.scan(3)
        repository.mkdir()
        watched.scan(3)
        assert watched.events() == ["no model found, served models stay"]
        repository.rmdir()
        away.rename(repository)
        (repository / "loop").symlink_to("loop")
        watched.scan(3)
        assert watched.events() == ["models cannot be scanned, served models stay"]
        assert watched.served() == ["ants/1", "farm/1"]


def test_a_changed_link_changes_the_model(repository, tmp_path):
    """If a link on the path of a model file changes, the file at the link's new target is loaded.

    Kubernetes (for a ConfigMap) and git-sync replace all files of a folder by the change of one link.
    """
    for number in (1, 2):
        write_model(tmp_path / f"..{number}" / "1" / "model.onnx", seed=number)
    mounted = tmp_path / "mounted" / "farm"
    mounted.mkdir(parents=True)
    (mounted / "..data").symlink_to(tmp_path / "..1")
    (mounted / "1").symlink_to("..data/1")
    with watching(tmp_path / "mounted") as watched:
        first = watched.models.get("", "").artifact.digest
        (mounted / "..new").symlink_to(tmp_path / "..2")
        (mounted / "..new").rename(mounted / "..data")
        watched.scan()
        assert watched.served() == ["farm/1"]
        assert watched.models.get("", "").artifact.digest != first


def test_a_removed_version_runs_its_queued_rows_and_is_then_unloaded(repository):
    """A removed version still runs its queued rows, and is then unloaded.

    A request that is submitted to this version afterwards raises ShuttingDown.
    """
    put(repository, "farm/2", seed=2)
    with watching(repository, late_s=0) as watched:
        model = watched.models.get("", "")
        session = weakref.ref(model.batcher._predict.__self__)
        queued = model.batcher.submit(drawings(1))
        shutil.rmtree(repository / "farm" / "2")
        watched.scan(3)
        assert not queued.done()
        assert watched.events() == ["model retired"]
        with watched.pool:
            assert queued.result(5).scores.shape == (1, 3)
            while "model unloaded" not in watched.events():
                watched.scan(1)
            with pytest.raises(ShuttingDown):
                model.batcher.submit(drawings(1))
        assert session() is None


def test_a_retired_model_stays_loaded_for_late_requests(repository):
    """After a model file is replaced, the old model stays loaded for `late_s`, for late requests.

    A late request has looked up the model before the replacement, and submits its rows afterwards.
    """
    with watching(repository, late_s=60) as watched, watched.pool:
        found = watched.models.get("", "")
        put(repository, "farm/1", seed=2)
        watched.scan(4)
        assert watched.models.get("", "").batcher is not found.batcher
        assert scores(found).shape == (3, 3)


def test_a_single_file_is_watched(tmp_path):
    """If a service serves a single model file, this file may be replaced by another version of the same model.

    A file with another model name is refused, because clients use the name in their requests. If the file is removed,
    the model is still served.
    """
    path = write_model(tmp_path / "m.onnx", metadata={"sketchbatch.name": "farm", "sketchbatch.version": "1"})
    with watching(path) as watched:
        write_model(path, seed=2, metadata={"sketchbatch.name": "farm", "sketchbatch.version": "2"})
        watched.scan()
        assert watched.served() == ["farm/2"]
        write_model(path, seed=3, metadata={"sketchbatch.name": "zoo"})
        watched.scan()
        assert watched.served() == ["farm/2"]
        assert (
            "must be named 'farm' as before, got 'zoo'; train or adapt it with `--name farm`, or restart"
            in watched.models.refused[0].cause
        )
        path.unlink()
        watched.scan(3)
        assert watched.served() == ["farm/2"]


def test_an_incorrect_version_at_the_start_is_refused_if_the_default_has_another(repository):
    """A service starts although one model file has no labels, if another version of the default model is correct.

    The file without labels is refused, as by a service that was running when the file appeared. The start fails only if
    no file of the default model is correct.
    """
    put(repository, "farm/2", labels=None)
    put(repository, "zoo/1", labels=None)
    with watching(repository) as watched:
        assert watched.served() == ["farm/1"]
        assert watched.events() == ["model refused", "model refused"]
        assert watched.models.loads == {"served": 1, "refused": 2}
        put(repository, "zoo/1")
        watched.scan()
        assert watched.served() == ["farm/1", "zoo/1"]
    put(repository, "ants/1", labels=None)  # "ants" is the first name in the alphabet and therefore the default model
    with pytest.raises(ModelRefused, match=r"ants/1.*labels"):
        load_models(repository, OPTIONS)


def test_a_file_that_changes_while_it_is_loaded_is_not_served(repository):
    """A model file that changes while it is loaded is refused.

    Otherwise the service could report the digest of the old bytes, and return the scores of the new ones.
    """
    [file] = find(repository)
    put(repository, "farm/1", seed=2)
    with pytest.raises(ModelRefused, match="changed while it was loaded"):
        load(file, OPTIONS)


def test_a_stopped_watcher_loads_no_model(repository):
    """After `stop`, which a draining service calls, the watcher neither loads nor replaces models."""
    with watching(repository) as watched:
        put(repository, "farm/2", seed=2)
        watched.scan(1)
        watched.watcher.stop()
        watched.scan(2)
        assert watched.served() == ["farm/1"]
