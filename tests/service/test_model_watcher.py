"""Models at run time: what comes, changes, goes, and stays.

The tests look by themselves: a file is taken at the second look that finds it the same, gone at the second without it.
"""

import re
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
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
from structlog.testing import capture_logs

OPTIONS = LoadOptions(provider="cpu", threads=1)


class Watched:
    """The models at `path`, looked at by the test, with a crew that runs once it is entered."""

    def __init__(self, path: Path, late_s: float) -> None:
        self.models = load_models(path, OPTIONS)
        self.crew = self.models.thread_pool()
        self.watch = ModelWatcher(path, OPTIONS, self.models, self.crew, every_s=0, late_s=late_s)
        self.log: list[dict] = []

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.watch.look()

    def served(self) -> list[str]:
        return [f"{model.name}/{model.version}" for model in self.models]

    def events(self) -> list[str]:
        """What the log says since the last time it was asked."""
        events = [event["event"] for event in self.log]
        self.log.clear()
        return events


@contextmanager
def watching(path: Path, late_s: float = 60) -> Iterator[Watched]:
    with capture_logs() as log:
        watched = Watched(path, late_s)
        watched.log = log
        yield watched


def put(repository: Path, place: str, **model: object) -> Path:
    """Writes a model as one should: beside, then moved."""
    ready = write_model(repository.parent / "ready.onnx", **model)
    path = repository / place / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    return ready.rename(path)


@pytest.fixture
def repository(tmp_path) -> Path:
    """Version 1 of `farm`."""
    put(tmp_path / "models", "farm/1")
    return tmp_path / "models"


def test_a_new_version_takes_over_at_the_second_look(repository):
    """It is the newest from then on, the old one goes on by its number, and the log has each step once."""
    with watching(repository) as watched:
        put(repository, "farm/2", seed=2)
        watched.look(1)
        assert watched.served() == ["farm/1"]
        watched.look(3)
        assert watched.served() == ["farm/2", "farm/1"]
        assert watched.models.get("farm", "").version == watched.models.get("", "").version == "2"
        assert watched.models.get("", "1").version == "1"
        assert watched.events() == ["model found", "model serves"]
        assert watched.models.loads == {"served": 2, "refused": 0}


def test_what_came_is_run_by_the_same_crew(repository):
    """Its scores are its own."""
    with watching(repository) as watched, watched.crew:
        put(repository, "farm/2", seed=2)
        watched.look()
        old, new = (scores(watched.models.get("farm", version)) for version in "12")
        assert np.array_equal(new, scores(load_models(repository, OPTIONS).get("farm", "2"), runs=True))
        assert not np.array_equal(old, new)


def scores(model: ServedModel, *, runs: bool = False) -> np.ndarray:
    """Of some drawings; by the running crew, or by one of its own."""
    future = model.batcher.submit(drawings(1, 2, 3))
    if runs:
        with LeaderFollowerPool([model.batcher], slots=1):
            return future.result(5).scores
    return future.result(5).scores


def test_a_file_that_is_being_copied_is_left_alone_until_it_is_whole(repository):
    """While it grows it is not touched; where the copy stalls it is refused, and taken once it is whole."""
    whole = write_model(repository.parent / "whole.onnx", seed=2).read_bytes()
    path = repository / "farm" / "2" / "model.onnx"
    path.parent.mkdir()
    with watching(repository) as watched:
        for part in (100, 1000, len(whole) // 2):
            path.write_bytes(whole[:part])
            watched.look(1)
        assert set(watched.events()) == {"model found"}
        watched.look(3)  # it stalls
        assert watched.events() == ["model refused, what is served stays"]
        path.write_bytes(whole)
        watched.look()
        assert watched.events() == ["model found", "model serves"]
        assert (watched.served(), watched.models.refused) == (["farm/2", "farm/1"], ())


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ({"labels": ["ant", "bee"]}, "3 different class names .*, got 2"),
        ({"input_shape": ("n", 28, 28, 1)}, r"input must be bitmaps: uint8 \(N, 28, 28\)"),
        ({"flat_width": 785}, "breaks on 1 rows"),
        ({"scale": np.nan}, "scores must be finite numbers, got NaN"),
    ],
)
def test_a_broken_version_is_refused_and_the_old_one_stays(repository, broken, cause):
    """The log says why, once; it is tried again when it changes."""
    with watching(repository) as watched:
        put(repository, "farm/2", **broken)
        watched.look(5)
        assert watched.served() == ["farm/1"]
        [refused] = [event for event in watched.log if event["event"] == "model refused, what is served stays"]
        assert (refused["model"], refused["version"], refused["log_level"]) == ("farm", "2", "error")
        assert re.search(cause, refused["cause"])
        assert [refusal.cause for refusal in watched.models.refused] == [refused["cause"]]
        put(repository, "farm/2", seed=2)
        watched.look()
        assert (watched.served(), watched.models.refused) == (["farm/2", "farm/1"], ())
        assert watched.models.loads == {"served": 2, "refused": 1}


def test_a_version_without_softmax_serves_and_the_log_says_so(repository):
    """It may be meant: what is highest is still what is named."""
    with watching(repository) as watched:
        put(repository, "farm/2", softmax=False)
        watched.look()
        assert watched.served() == ["farm/2", "farm/1"]
        assert "the scores of a row do not sum to 1: no softmax?" in watched.events()


@pytest.mark.parametrize("what", ["no model", "weights from elsewhere"])
def test_a_refusal_tells_callers_why_and_not_where(tmp_path, what):
    """ONNX Runtime names paths, also with blanks in them; RepositoryIndex passes none on."""
    repository = tmp_path / "the models"
    put(repository, "farm/1")
    path = put(repository, "farm/2")
    if what == "no model":
        path.write_text("<!doctype html>")
    else:
        model = onnx.load(path)
        weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
        weights.ClearField("raw_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=str(tmp_path / "secret place" / "weights"))
        path.write_bytes(model.SerializeToString())
    [refused] = load_models(repository, OPTIONS).refused
    told = descriptions.refusal(refused)
    assert str(path) in refused.cause
    assert told.startswith("refused: not a model that ONNX Runtime can load: ")
    assert not re.search(r"/|the models|secret", told)


def test_a_file_replaced_in_place_is_that_version_anew(repository):
    """A broken one changes nothing; the same bytes again, as after `touch`, are not loaded again."""
    with watching(repository) as watched:
        put(repository, "farm/1", seed=2)
        watched.look()
        second = watched.models.get("", "")
        assert watched.events() == ["model found", "model serves", "model retired"]
        put(repository, "farm/1", labels=None)
        watched.look()
        assert watched.models.get("", "") is second
        assert (len(watched.models.refused), watched.served()) == (1, ["farm/1"])
        put(repository, "farm/1", seed=2)
        watched.look(3)
        assert watched.models.get("", "").batcher is second.batcher
        assert (watched.models.refused, watched.models.loads) == ((), {"served": 2, "refused": 1})


def test_rollback_is_removing_the_new_version(repository):
    """At the second look without it, the one before is the newest again."""
    put(repository, "farm/2", seed=2)
    with watching(repository) as watched:
        shutil.rmtree(repository / "farm" / "2")
        watched.look(1)
        assert watched.models.get("", "").version == "2"
        watched.look(1)
        assert watched.models.get("", "").version == "1"
        with pytest.raises(ModelNotFound, match=r"'farm' version '2'; there are: farm \(version 1\)"):
            watched.models.get("farm", "2")
        assert watched.events() == ["model retired"]


def test_names_come_and_go(repository):
    """A new name needs no restart, and does not become the default; one without a version is unknown."""
    with watching(repository) as watched:
        put(repository, "ants/1")
        put(repository, ".copying/1")  # passed over, whatever is in it
        watched.look()
        assert watched.served() == ["farm/1", "ants/1"]
        shutil.rmtree(repository / "ants")
        watched.look()
        with pytest.raises(ModelNotFound, match=r"'ants'; there are: farm \(version 1\)"):
            watched.models.get("ants", "")


def test_the_default_models_last_version_stays_until_there_is_another(repository):
    """Requests that name no model are answered by no other; the log says so once."""
    put(repository, "ants/1")
    with watching(repository) as watched:
        watched.models = load_models(repository, LoadOptions(default_model="farm", provider="cpu", threads=1))
        watched.watch = ModelWatcher(repository, OPTIONS, watched.models, watched.crew, every_s=0)
        shutil.rmtree(repository / "farm")
        watched.look(4)
        assert watched.served() == ["farm/1", "ants/1"]
        assert watched.events() == ["model kept without its file: nothing else can be the default"]
        put(repository, "farm/2", seed=2)
        watched.look(3)
        assert watched.served() == ["farm/2", "ants/1"]
        assert watched.events() == ["model found", "model serves", "model retired"]


def test_a_repository_that_cannot_be_seen_changes_nothing(repository):
    """An empty folder, none, or one that does not answer is rather a volume that is not there: the log says so once."""
    put(repository, "ants/1")
    with watching(repository) as watched:
        away = repository.rename(repository.parent / "away")
        watched.look(3)
        repository.mkdir()
        watched.look(3)
        assert watched.events() == ["no model found, what is served stays"]
        repository.rmdir()
        away.rename(repository)
        (repository / "loop").symlink_to("loop")
        watched.look(3)
        assert watched.events() == ["models cannot be looked for, what is served stays"]
        assert watched.served() == ["ants/1", "farm/1"]


def test_links_turned_as_kubernetes_does_are_seen(repository, tmp_path):
    """What counts is the file behind the link: a ConfigMap or a git-sync turns one link to change all."""
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
        watched.look()
        assert watched.served() == ["farm/1"]
        assert watched.models.get("", "").artifact.digest != first


def test_a_removed_version_answers_what_it_has_queued_and_then_its_memory_is_free(repository):
    """Its session is gone; a request that still held the model, against all odds, is refused rather than lost."""
    put(repository, "farm/2", seed=2)
    with watching(repository, late_s=0) as watched:
        model = watched.models.get("", "")
        session = weakref.ref(model.batcher._predict.__self__)
        queued = model.batcher.submit(drawings(1))
        shutil.rmtree(repository / "farm" / "2")
        watched.look(3)
        assert not queued.done()
        assert watched.events() == ["model retired"]
        with watched.crew:
            assert queued.result(5).scores.shape == (1, 3)
            while "model unloaded" not in watched.events():
                watched.look(1)
            with pytest.raises(ShuttingDown):
                model.batcher.submit(drawings(1))
        assert session() is None


def test_a_model_is_kept_a_while_for_requests_that_had_found_it(repository):
    """Between finding a model and submitting to it, another may have taken its place."""
    with watching(repository, late_s=60) as watched, watched.crew:
        found = watched.models.get("", "")
        put(repository, "farm/1", seed=2)
        watched.look(4)
        assert watched.models.get("", "").batcher is not found.batcher
        assert scores(found).shape == (3, 3)


def test_one_file_is_watched_too(tmp_path):
    """It is replaced in place; its own version counts, and its name must stay, for requests know it."""
    path = write_model(tmp_path / "m.onnx", metadata={"sketchbatch.name": "farm", "sketchbatch.version": "1"})
    with watching(path) as watched:
        write_model(path, seed=2, metadata={"sketchbatch.name": "farm", "sketchbatch.version": "2"})
        watched.look()
        assert watched.served() == ["farm/2"]
        write_model(path, seed=3, metadata={"sketchbatch.name": "zoo"})
        watched.look()
        assert watched.served() == ["farm/2"]
        assert "must be named 'farm' as before, got 'zoo'" in watched.models.refused[0].cause
        path.unlink()
        watched.look(3)
        assert watched.served() == ["farm/2"]


def test_a_broken_version_at_start_is_refused_while_the_default_has_another(repository):
    """A replica that starts while a broken version lies there serves what the others serve."""
    put(repository, "farm/2", labels=None)
    put(repository, "zoo/1", labels=None)
    with watching(repository) as watched:
        assert watched.served() == ["farm/1"]
        assert watched.events() == ["model refused", "model refused"]
        assert watched.models.loads == {"served": 1, "refused": 2}
        put(repository, "zoo/1")
        watched.look()
        assert watched.served() == ["farm/1", "zoo/1"]
    put(repository, "ants/1", labels=None)  # the first by name
    with pytest.raises(ModelRefused, match=r"ants/1.*labels"):
        load_models(repository, OPTIONS)


def test_a_file_that_changes_while_it_is_loaded_is_not_served(repository):
    """Its scores could be of one file, its digest of the next."""
    [file] = find(repository)
    put(repository, "farm/1", seed=2)
    with pytest.raises(ModelRefused, match="changed while it was loaded"):
        load(file, OPTIONS)


def test_a_watch_that_was_stopped_takes_nothing_more(repository):
    """A service that drains neither loads nor swaps."""
    with watching(repository) as watched:
        put(repository, "farm/2", seed=2)
        watched.look(1)
        watched.watch.stop()
        watched.look(2)
        assert watched.served() == ["farm/1"]
