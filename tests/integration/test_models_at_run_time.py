"""Test that a running service activates, refuses and rolls back models without failed calls."""

import shutil
import urllib.request

import grpc
import pytest
from model_callers import Callers, Repository
from polling import wait_until
from sketchbatch.v1 import classifier_pb2 as pb

pytestmark = pytest.mark.timeout(60)


def metrics(service) -> str:
    """Return the metrics page of `service` as text."""
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics") as page:
        return page.read().decode()


def test_no_call_fails_while_versions_are_added_replaced_and_removed(start_service, tmp_path):
    """While versions are added, replaced and removed, each response names a version and has the scores of this version.

    The repository index and the metrics of the service report the refused model file.
    """
    repository = Repository(tmp_path / "models")
    repository.write(1)
    service = start_service(
        repository.path, "--watch-models-s", "0.1", "--metrics-address", "127.0.0.1:0", "--provider", "cpu"
    )

    with Callers(service.address, repository, each=2) as callers:
        wait_until(lambda: callers.versions["1"])
        repository.write(2)
        wait_until(lambda: callers.versions["2"])
        repository.write(3, labels=["ant"])  # an incorrect file, because the model has three classes and one label
        wait_until(lambda: len(callers.rpc("RepositoryIndex").models) == 3)
        index = [(each.version, each.state, each.reason) for each in callers.rpc("RepositoryIndex").models]
        assert index[:2] == [("2", "READY", ""), ("1", "READY", "")]
        version, state, reason = index[2]
        assert (version, state) == ("3", "UNAVAILABLE")
        assert reason.startswith("refused: 1 label for 3 classes")
        assert str(tmp_path) not in reason
        assert not callers.rpc("ModelReady", name="farm", version="3").ready
        assert [each.version for each in callers.rpc("RepositoryIndex", ready=True).models] == ["2", "1"]
        assert 'sketchbatch_refused_models{worker="1"} 1.0' in metrics(service)
        repository.write(2)  # this file replaces the previous file of version 2
        wait_until(lambda: 'sketchbatch_model_loads_total{outcome="served",worker="1"} 3.0' in metrics(service))
        assert 'sketchbatch_model_loads_total{outcome="refused",worker="1"} 1.0' in metrics(service)
        shutil.rmtree(repository.path / "farm" / "2")  # version 1 becomes the newest version again
        wait_until(lambda: callers.newest() == "1")
        with pytest.raises(grpc.RpcError) as caught:
            callers.stub.Classify(pb.ClassifyRequest(model_version="2", bitmaps=bytes(784)))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert [each.version for each in callers.rpc("ModelStatistics").model_stats] == ["1"]
    assert callers.outcomes == {"right": callers.outcomes.total()}
    assert callers.versions.keys() == {"1", "2"}
    code, log = service.stop()
    assert code == 0
    events = [(event["message"], event.get("version")) for event in log if event["message"].startswith("model ")]
    assert [event for event in events if event[0] not in ("model found", "model unloaded")] == [
        ("model serves", "2"),
        ("model refused, what is served stays", "3"),
        ("model serves", "2"),
        ("model retired", "2"),
        ("model retired", "2"),
    ]


def test_a_repository_of_300_versions_costs_as_much_as_one_of_two(start_service, tmp_path):
    """By default, a service loads the two newest versions; it lists the other versions, and names the policy.

    A new version is activated, and the older of the two is then excluded.
    """
    repository = Repository(tmp_path / "models")
    for version in (300, 299):
        repository.write(version)
    for version in range(1, 299):
        folder = repository.path / "farm" / str(version)
        folder.mkdir()
        (folder / "model.onnx").hardlink_to(repository.path / "farm" / "300" / "model.onnx")
    service = start_service(
        repository.path, "--watch-models-s", "0.1", "--metrics-address", "127.0.0.1:0", "--provider", "cpu"
    )
    assert service.ready["models"] == [f"farm/{version} on CPUExecutionProvider" for version in (300, 299)]
    assert metrics(service).count("\nsketchbatch_model_info{") == 2
    with Callers(service.address, repository, each=0) as callers:
        index = callers.rpc("RepositoryIndex").models
        assert [(each.version, each.state, each.reason) for each in index] == [
            ("300", "READY", ""),
            ("299", "READY", ""),
            *((str(v), "UNAVAILABLE", "not loaded: --versions latest:2 excludes it") for v in range(298, 0, -1)),
        ]
        assert [each.version for each in callers.rpc("RepositoryIndex", ready=True).models] == ["300", "299"]
        assert callers.rpc("ModelMetadata", name="farm").versions == ["300", "299"]
        assert not callers.rpc("ModelReady", name="farm", version="298").ready
        with pytest.raises(grpc.RpcError, match="'farm' version '298': --versions latest:2 excludes it") as caught:
            callers.stub.Classify(pb.ClassifyRequest(model_version="298", bitmaps=bytes(784)))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        repository.write(301)
        wait_until(lambda: callers.rpc("ModelMetadata", name="farm").versions == ["301", "300"])
    _, log = service.stop()
    [retired] = [event for event in log if event["message"] == "model retired"]
    assert (retired["version"], retired["cause"]) == ("299", "excluded by --versions")


def test_a_named_version_that_does_not_exist_ends_the_start(run_command, tmp_path):
    """If a named version does not exist, the service ends with one line, which names the existing versions."""
    repository = Repository(tmp_path / "models")
    for version in (1, 2):
        repository.write(version)
    ended = run_command("sketchbatch-serve", "--model", repository.path, "--versions", "1,7", "--provider", "cpu")
    assert ended.returncode == 1
    assert "--versions 1,7 must name versions of 'farm' that exist, got 7; there are: 2, 1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_replaced_file_with_other_labels_is_refused(start_service, tmp_path):
    """A file with other labels in the place of a served file is refused: the metrics and RepositoryIndex show it."""
    repository = Repository(tmp_path / "models")
    repository.write(1)
    service = start_service(
        repository.path, "--watch-models-s", "0.1", "--metrics-address", "127.0.0.1:0", "--provider", "cpu"
    )
    with Callers(service.address, repository, each=0) as callers:
        before = callers.stub.GetModel(pb.GetModelRequest()).model
        repository.write(1, labels=["bee", "ant", "cow"])
        wait_until(lambda: callers.rpc("RepositoryIndex").models[0].reason)
        [entry] = callers.rpc("RepositoryIndex").models
        assert entry.state == "READY"
        assert entry.reason.startswith("refused: must have the labels of the served file of 'farm' version 1: label 0")
        assert 'sketchbatch_model_loads_total{outcome="refused",worker="1"} 1.0' in metrics(service)
        assert callers.stub.GetModel(pb.GetModelRequest()).model == before
        repository.write(1)
        wait_until(lambda: callers.stub.GetModel(pb.GetModelRequest()).model.digest != before.digest)
        assert [each.reason for each in callers.rpc("RepositoryIndex").models] == [""]


def test_every_worker_activates_a_new_version(start_service, tmp_path):
    """Each of two workers scans the repository and loads the second version of the model."""
    repository = Repository(tmp_path / "models")
    repository.write(1)
    service = start_service(
        repository.path, "--watch-models-s", "0.1", "--workers", "2", "--metrics-address", "127.0.0.1:0"
    )
    repository.write(2)

    def workers_with_two_loads() -> int:
        return sum('outcome="served"' in line and line.endswith(" 2.0") for line in metrics(service).splitlines())

    wait_until(lambda: workers_with_two_loads() == 2)


def test_a_service_without_polling_keeps_its_models(start_service, tmp_path):
    """A service with `--watch-models-s 0` does not scan its repository, and ignores a new version.

    Another service, which scans the same repository, activates the version.
    """
    repository = Repository(tmp_path / "models")
    repository.write(1)
    polling = start_service(repository.path, "--watch-models-s", "0.1", "--provider", "cpu")
    fixed = start_service(repository.path, "--watch-models-s", "0", "--provider", "cpu")
    repository.write(2)
    with Callers(polling.address, repository, each=0) as callers:
        wait_until(lambda: callers.newest() == "2")
    with Callers(fixed.address, repository, each=0) as callers:
        assert callers.newest() == "1"
    _, log = fixed.stop()
    assert not [event for event in log if event["message"].startswith("model ")]
