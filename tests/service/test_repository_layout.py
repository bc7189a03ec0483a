"""Test what the service says about models at the wrong level or in the wrong place of a repository."""

import os
import re
import tempfile
from pathlib import Path

import pytest
from fakes import FakeModel
from in_process import serving
from onnx_models import write_model
from sketchbatch_service.errors import ModelRefused
from sketchbatch_service.models.loader import load_models
from sketchbatch_service.models.repository import find, scan
from structlog.testing import capture_logs
from watched_models import OPTIONS, put, watching

WRONG_PLACE = "model in the wrong place, not served"


def touch(repository: Path, *places: str) -> None:
    """Create empty files, and folders for them; a place that ends in / is a folder."""
    for place in places:
        path = repository / place
        (path if place.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not place.endswith("/"):
            path.touch()


def refusal(path: Path) -> str:
    """Return the error of a start with `path`."""
    with pytest.raises(ModelRefused, match=r"NAME/VERSION/model\.onnx, VERSION a number") as caught:
        load_models(path, OPTIONS)
    return str(caught.value)


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ("r/m", "r/m is one model of a repository: use --model r, or --model r/m/1/model.onnx for it alone"),
        ("r/m/1", "r/m/1 is one version of a model: use --model r, or --model r/m/1/model.onnx for it alone"),
        ("up", "up/models is a repository: use --model up/models"),
        ("loose", "loose/model.onnx is one model: use --model loose/model.onnx"),
        ("named", "named/cats.onnx is one model: use --model named/cats.onnx"),
    ],
)
def test_a_wrong_level_is_recognised(tmp_path, monkeypatch, asked, advice):
    """If a path is one or two levels too deep or too high, the refusal has the right --model."""
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "r/m/1/model.onnx", "up/models/m/1/model.onnx", "up/a.onnx", "loose/model.onnx", "named/cats.onnx")
    assert refusal(Path(asked)).endswith(f"; {advice}")


def test_the_current_folder_has_a_parent(tmp_path, monkeypatch):
    """The advice is right in the folder of a model, whose relative name is a dot."""
    touch(tmp_path, "r/m/1/model.onnx")
    monkeypatch.chdir(tmp_path / "r" / "m")
    assert refusal(Path()).endswith(f"use --model {tmp_path / 'r'}, or --model 1/model.onnx for it alone")
    monkeypatch.chdir(tmp_path / "r" / "m" / "1")
    assert f"use --model {tmp_path / 'r'}, or" in refusal(Path())


def test_a_folder_without_any_model_gets_no_advice(tmp_path):
    """If nothing looks like a model, the refusal has only the layout."""
    touch(tmp_path, "a/b/c.txt", "d/")
    assert refusal(tmp_path).endswith("VERSION a number")


def test_models_in_the_wrong_place_are_named_if_there_is_no_other(tmp_path):
    """If a repository has only models in the wrong place, the refusal names the first one."""
    touch(tmp_path, "m/v2/model.onnx")
    assert refusal(tmp_path).endswith(f"; {tmp_path}/m/v2: must be a number, got 'v2'; rename it to 2")


MISPLACED = {
    "m/v2/model.onnx": "m/v2: must be a number, got 'v2'; rename it to 2",
    "m/latest/model.onnx": "m/latest: must be a number, got 'latest'",
    "empty/1/mymodel.onnx": "empty/1: must hold a model.onnx, got mymodel.onnx",
    "bare/7/": "bare/7: must hold a model.onnx, got no readable file",
    "m/01/model.onnx": "m/01: is version 1, as is m/1, which is served; remove one of the two",
    "flat/model.onnx": "flat/model.onnx: must be in a folder of its version, such as flat/1/model.onnx",
    "flat/cats.onnx": "flat/cats.onnx: must be in a folder of its version, such as flat/1/model.onnx",
    "cats.onnx": "cats.onnx: must be in a folder of its name and version, such as cats/1/model.onnx",
}


@pytest.mark.parametrize("place", MISPLACED)
def test_a_model_in_the_wrong_place_is_named(tmp_path, place):
    """What looks like a model, but is not served, is logged with the reason and counted, and the others are served."""
    write_model(tmp_path / "m" / "1" / "model.onnx")
    touch(tmp_path, place)
    with capture_logs() as log:
        models = load_models(tmp_path, OPTIONS)
    expected = (
        MISPLACED[place].replace("as is m/1", f"as is {tmp_path}/m/1").replace("as flat/", f"as {tmp_path}/flat/")
    )
    expected = f"{tmp_path}/{expected.replace('as cats/', f'as {tmp_path}/cats/')}"
    assert [event["cause"] for event in log if event["event"] == WRONG_PLACE] == [expected]
    assert [each.cause for each in models.misplaced] == [expected]
    assert [(model.name, model.version) for model in models] == [("m", "1")]


STRAYS = (
    ".git/1/model.onnx",
    "README.md",
    "lost+found/",
    "notes/today.txt",
    "m/.2/model.onnx",
    "m/1/model.onnx.data",
    "m/1/model.onnx~",
    "m/3/.model.onnx.part",
    "m/config.pbtxt",
    "m/extra/vocabulary.txt",
    "m/labels.txt",
)


def test_strays_are_passed_over_in_silence(tmp_path):
    """Files that do not look like models, hidden files and unfinished copies are neither logged nor counted."""
    write_model(tmp_path / "m" / "1" / "model.onnx")
    touch(tmp_path, *STRAYS)
    with capture_logs() as log:
        models = load_models(tmp_path, OPTIONS)
    assert (models.misplaced, [event for event in log if event["log_level"] != "info"]) == ((), [])


def test_a_version_is_served_from_its_shortest_spelling(tmp_path):
    """Of folders with the same number, the one with the fewest zeros is served; alone, any spelling is served."""
    places = ("a/001", "a/01", "a/1", "b/007", "b/07", "c/01")
    touch(tmp_path, *(f"{place}/model.onnx" for place in places))
    assert [(file.name, file.version) for file in find(tmp_path)] == [("a", "1"), ("b", "07"), ("c", "01")]
    assert {str(each.path.relative_to(tmp_path)) for each in scan(tmp_path).misplaced} == {"a/001", "a/01", "b/007"}


def test_misplaced_models_appear_and_disappear(tmp_path):
    """The watcher logs a model in the wrong place once, after two scans, and drops it when it is moved or removed."""
    repository = tmp_path / "models"
    put(repository, "m/1")
    with watching(repository) as watched:
        put(repository, "m/v2", seed=2)
        watched.scan(1)
        assert watched.models.misplaced == ()  # it may be unfinished
        watched.scan(5)
        [misplaced] = watched.models.misplaced
        assert misplaced.cause == f"{repository}/m/v2: must be a number, got 'v2'; rename it to 2"
        assert watched.events().count(WRONG_PLACE) == 1
        (repository / "m" / "v2").rename(repository / "m" / "2")
        watched.scan()
        assert (watched.models.misplaced, watched.served()) == ((), ["m/2", "m/1"])
        assert WRONG_PLACE not in watched.events()


async def test_a_metric_counts_misplaced_models(tmp_path):
    """The metric of the refused model files counts the models in the wrong place, until they are moved."""
    touch(tmp_path, "m/v2/model.onnx", "flat/model.onnx")
    async with serving(m=FakeModel()) as service:
        assert service.values()["sketchbatch_refused_models"] == 0
        service.models.put(service.models, (), misplaced=scan(tmp_path).misplaced)
        assert service.values()["sketchbatch_refused_models"] == 2
        service.models.put(service.models, ())
        assert service.values()["sketchbatch_refused_models"] == 2  # a change of the models leaves them as they are
        service.models.put(service.models, (), misplaced=())
        assert service.values()["sketchbatch_refused_models"] == 0


def test_a_file_that_grows_is_not_misplaced_yet(tmp_path):
    """A copy under another name, which grows between two scans, may still get its right name: it is not logged."""
    repository = tmp_path / "models"
    put(repository, "m/1")
    with watching(repository) as watched:
        touch(repository, "m/2/")
        copy = repository / "m" / "2" / "model.onnx.6eF2b1C3"
        for size in range(1, 5):
            copy.write_bytes(bytes(size))
            watched.scan(1)
        assert watched.models.misplaced == ()
        watched.scan(1)
        assert len(watched.models.misplaced) == 1
        copy.write_bytes(bytes(9))
        watched.scan(1)
        assert watched.events().count(WRONG_PLACE) == 1


def test_a_second_spelling_of_a_version_gives_way(tmp_path):
    """A served 01 is retired for a new folder 1 without a moment in which the model has no version."""
    repository = tmp_path / "models"
    put(repository, "m/01")
    with watching(repository) as watched:
        assert watched.served() == ["m/01"]
        put(repository, "m/1", seed=2)
        for _ in range(3):
            watched.scan(1)
            assert watched.served()
        assert watched.served() == ["m/1"]
        assert [each.path.name for each in watched.models.misplaced] == ["01"]


@pytest.mark.parametrize("place", ["farm", "farm/1", "farm/1/model.onnx"])
def test_what_may_not_be_read_is_reported_with_the_user(place):
    """In a container, a volume often belongs to another user; the message has the path and the uid of the service."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders belong to one user
        repository = Path(folder) / "models"
        Path(folder).chmod(0o755)
        path = put(repository, "farm/1")
        put(repository, "zoo/1")
        user = os.geteuid()
        (repository / place).chmod(0)
        try:
            if user == 0:
                os.seteuid(65532)
            reason = rf"{re.escape(place)}: cannot be read: permission denied \(running as uid {os.geteuid()}\)"
            if (repository / place) == path:
                with pytest.raises(ModelRefused, match=reason):
                    load_models(path, OPTIONS)
            else:
                assert [file.name for file in scan(repository).files] == ["zoo"]
                assert re.search(reason, scan(repository).misplaced[0].cause)
        finally:
            os.seteuid(user)
            (repository / place).chmod(0o755)
