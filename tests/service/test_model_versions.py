"""Test which versions of a repository are loaded, at the start of the service and while it runs.

The other files of a repository are never read: most tests write files there that would be refused.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import drawings
from onnx_models import write_model
from sketchbatch_service.errors import ModelNotFound, ModelRefused
from sketchbatch_service.models.arrival import ModelArrival
from sketchbatch_service.models.loader import load_models
from sketchbatch_service.version_policy import VersionPolicy
from watched_models import OPTIONS, Watched, put, remove, watching


def options(versions: str):
    return replace(OPTIONS, versions=VersionPolicy.parse(versions))


def served(models) -> list[str]:
    return [f"{model.name}/{model.version}" for model in models]


def excluded(models) -> list[str]:
    return [f"{each.name}/{each.version}" for each in models.excluded]


def put_junk(repository: Path, *places: str) -> None:
    """Write files that are no models: a service that loaded such a file would refuse it."""
    for place in places:
        path = repository / place / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_text("not a model")


@pytest.fixture
def repository(tmp_path) -> Path:
    """Return a repository with the versions 8, 9 and 10 of the model `farm`."""
    for version in (8, 9, 10):
        put(tmp_path / "models", f"farm/{version}")
    return tmp_path / "models"


def test_two_of_300_versions_are_loaded(tmp_path):
    """By default, the two newest versions of a repository are loaded; the files of the other 298 are not read."""
    repository = tmp_path / "models"
    put_junk(repository, *(f"farm/{version}" for version in range(1, 299)))
    for version in (299, 300):
        put(repository, f"farm/{version}")
    models = load_models(repository, OPTIONS)
    assert models.loads == {"served": 2, "refused": 0}
    assert served(models) == ["farm/300", "farm/299"]
    assert len(models.excluded) == 298


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ("latest:1", ["farm/10"]),
        ("latest:2", ["farm/10", "farm/9"]),
        ("all", ["farm/10", "farm/9", "farm/8"]),
        ("8", ["farm/8"]),
        ("8,10", ["farm/10", "farm/8"]),
        ("latest:1;farm=8,9", ["farm/9", "farm/8"]),
    ],
)
def test_the_policy_selects_the_versions_at_the_start(repository, versions, expected):
    """The policy selects the versions by number: 10 is newer than 9. All other versions are excluded."""
    models = load_models(repository, options(versions))
    assert served(models) == expected
    assert sorted(served(models) + excluded(models)) == ["farm/10", "farm/8", "farm/9"]


def test_a_refused_version_takes_no_place_at_the_start(repository):
    """If the newest version is refused, the next older one is loaded in its place."""
    put_junk(repository, "farm/11")
    models = load_models(repository, options("latest:2"))
    assert served(models) == ["farm/10", "farm/9"]
    assert [each.version for each in models.refused] == ["11"]
    assert excluded(models) == ["farm/8"]


def test_a_single_file_is_served_whatever_the_policy(tmp_path):
    """The policy applies to repositories only."""
    path = write_model(tmp_path / "m.onnx", metadata={"sketchbatch.name": "farm", "sketchbatch.version": "7"})
    assert served(load_models(path, options("3;zoo=all"))) == ["farm/7"]


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ("farm=7", r"--versions farm=7 must name versions of 'farm' that exist, got 7; there are: 10, 9, 8$"),
        ("5,10,7", r"--versions 5,10,7 must name versions of 'farm' that exist, got 5, 7; there are: 10, 9, 8$"),
        ("zoo=all", r"--versions zoo=all must name a model that exists, got 'zoo'; there are: farm$"),
    ],
)
def test_a_version_that_does_not_exist_prevents_the_start(repository, versions, message):
    """A version or a model that the policy names must exist at the start; the error names the existing ones."""
    with pytest.raises(ModelRefused, match=message):
        load_models(repository, options(versions))


def test_an_error_names_few_of_many_versions(tmp_path):
    """The error about a missing version names the ten newest versions and the number of the others."""
    repository = tmp_path / "models"
    put_junk(repository, *(f"farm/{version}" for version in range(1, 301)))
    with pytest.raises(ModelRefused, match=r"there are: 300, .* 291 and 290 more$"):
        load_models(repository, options("999"))


def test_a_request_for_an_excluded_version_names_the_flag(repository):
    """A request for a version that exists, but is not loaded, receives an error that names the policy."""
    put_junk(repository, "farm/11")
    models = load_models(repository, options("latest:2"))
    listed = r"there are: farm \(version 10, 9\)"
    with pytest.raises(ModelNotFound, match=rf"'farm' version '8': --versions latest:2 excludes it; {listed}"):
        models.get("farm", "8")
    with pytest.raises(ModelNotFound, match=rf"'farm' version '8': --versions latest:2 excludes it; {listed}"):
        models.get("", "8")
    with pytest.raises(ModelNotFound, match=rf"'farm' version '11': its file is refused; {listed}"):
        models.get("farm", "11")
    with pytest.raises(ModelNotFound, match=rf"'farm' version '7'; {listed}"):
        models.get("farm", "7")


def test_a_file_is_either_served_or_excluded(repository):
    """A file that was excluded and is then activated is no longer listed as excluded, even before the scan ends."""
    models = load_models(repository, options("latest:1"))
    [_, older] = load_models(repository, options("latest:2"))
    models.put([*models, older], ())
    assert (served(models), excluded(models)) == (["farm/10", "farm/9"], ["farm/8"])


def test_a_new_version_retires_the_oldest(repository):
    """With `latest:2`, a new version is activated, and the older of both served versions is retired."""
    with watching(repository, options("latest:2")) as watched:
        put(repository, "farm/11", seed=2)
        watched.scan(1)
        assert watched.served() == ["farm/10", "farm/9"]
        watched.scan(1)
        assert watched.served() == ["farm/11", "farm/10"]
        assert excluded(watched.models) == ["farm/9", "farm/8"]
        assert retired(watched) == [("9", "excluded by --versions")]
        watched.scan(3)
        assert watched.events() == ["model found", "model serves", "model retired"]
        assert watched.models.loads == {"served": 3, "refused": 0}


def retired(watched: Watched) -> list[tuple[str, str]]:
    return [(event["version"], event["cause"]) for event in watched.log if event["event"] == "model retired"]


def test_a_late_request_to_an_excluded_version_is_answered(repository):
    """A request that found a version before the policy excluded it is answered, because the version stays loaded."""
    with watching(repository, options("latest:1")) as watched, watched.pool:
        late = watched.models.get("farm", "10")
        put(repository, "farm/11", seed=2)
        watched.scan()
        assert watched.served() == ["farm/11"]
        assert late.batcher.submit(drawings(1, 2, 3)).result(5).scores.shape == (3, 3)


def test_a_refused_new_version_retires_nothing(repository):
    """If a new version is refused, the served versions stay; each file is loaded once."""
    with watching(repository, options("latest:1")) as watched:
        put_junk(repository, "farm/11", "farm/12")
        watched.scan(4)
        assert watched.served() == ["farm/10"]
        assert watched.models.loads == {"served": 1, "refused": 2}
        put(repository, "farm/13", seed=2)
        watched.scan()
        assert watched.served() == ["farm/13"]
        assert watched.models.refused == ()  # the policy excludes 11 and 12 now
        assert excluded(watched.models) == ["farm/12", "farm/11", "farm/10", "farm/9", "farm/8"]


def test_the_removal_of_the_newest_version_brings_an_older_one_back(repository):
    """If the newest version is removed, the next excluded version is loaded before the removed one is retired."""
    with watching(repository, options("latest:2")) as watched:
        remove(repository, "farm/10")
        watched.scan(1)
        assert watched.served() == ["farm/10", "farm/9"]
        watched.scan(1)
        assert watched.served() == ["farm/9", "farm/8"]
        assert excluded(watched.models) == []
        assert watched.events() == ["model serves", "model retired"]


def test_a_file_that_is_missing_in_one_scan_changes_nothing(repository):
    """A version whose file is missing in a single scan still counts, so no older version is loaded for it."""
    with watching(repository, options("latest:1")) as watched:
        watched.scan(1)
        away = (repository / "farm" / "10").rename(repository.parent / "away")
        watched.scan(1)
        away.rename(repository / "farm" / "10")
        watched.scan(3)
        assert watched.served() == ["farm/10"]
        assert watched.events() == []


def test_a_file_that_is_excluded_is_not_read_when_it_changes(repository):
    """Old versions that are added, changed and removed are only listed."""
    with watching(repository, options("latest:1")) as watched:
        put_junk(repository, "farm/3")
        (repository / "farm" / "8" / "model.onnx").write_text("not a model")
        watched.scan(3)
        assert excluded(watched.models) == ["farm/9", "farm/8", "farm/3"]
        remove(repository, "farm/3")
        watched.scan(2)
        assert excluded(watched.models) == ["farm/9", "farm/8"]
        assert watched.events() == []
        assert watched.models.loads == {"served": 1, "refused": 0}


def test_only_named_versions_are_activated(repository):
    """With named versions, a new version is excluded. A named version that disappears is retired with one warning."""
    with watching(repository, options("8,9")) as watched:
        put(repository, "farm/11")
        watched.scan(3)
        assert watched.served() == ["farm/9", "farm/8"]
        assert watched.events() == []
        remove(repository, "farm/9")
        watched.scan(4)
        assert watched.served() == ["farm/8"]
        [warning] = [event for event in watched.log if event["log_level"] == "warning"]
        assert warning["cause"] == "--versions 8,9 must name versions of 'farm' that exist, got 9; there are: 11, 10, 8"
        put(repository, "farm/9", seed=2)
        watched.scan()
        assert watched.served() == ["farm/9", "farm/8"]


def test_two_warnings_are_logged_once_each(repository):
    """While two warnings apply at the same time, each one is logged once, and not at every scan."""
    with watching(repository, options("9")) as watched:
        remove(repository, "farm/9")
        watched.scan(5)
        assert watched.served() == ["farm/9"]
        assert sorted(watched.events()) == [
            "a version or model that --versions names is missing",
            "model kept without its file: nothing else can be the default",
        ]


def test_a_service_that_waits_loads_the_versions_of_the_policy(tmp_path):
    """While the first files arrive, the policy applies to the files that have arrived; a missing version is awaited."""
    repository = tmp_path / "models"
    put_junk(repository, "farm/1", "farm/2")
    put(repository, "farm/4")
    arrival = ModelArrival(repository, options("farm=3,4"))
    for _ in range(2):
        with pytest.raises(ModelRefused, match=r"--versions farm=3,4 must name versions .*, got 3; there are: 4, 2, 1"):
            arrival.scan()
    put(repository, "farm/3")
    with pytest.raises(ModelRefused, match="got 3"):  # after one scan, version 3 may be unfinished
        arrival.scan()
    models = arrival.scan()
    assert served(models) == ["farm/4", "farm/3"]
    assert excluded(models) == ["farm/2", "farm/1"]
    assert models.loads == {"served": 2, "refused": 0}


def test_a_second_folder_of_a_number_does_not_count(tmp_path):
    """The folders 7 and 07 have the same number; 7 is served, and 07 is neither served nor excluded by the policy."""
    for version in ("7", "07"):
        put(tmp_path / "models", f"farm/{version}")
    with watching(tmp_path / "models", options("latest:1")) as watched:
        watched.scan(3)
        assert (watched.served(), excluded(watched.models)) == (["farm/7"], [])
        assert [each.path.name for each in watched.models.misplaced] == ["07"]
        assert watched.events() == ["model in the wrong place, not served"]
