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
    """While versions are added, replaced and removed, each response has the scores of the version that it names.

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
        repository.write(3, labels=["ant"])  # invalid, because the model has three classes and one label
        wait_until(lambda: len(callers.rpc("RepositoryIndex").models) == 3)
        index = [(each.version, each.state, each.reason) for each in callers.rpc("RepositoryIndex").models]
        assert index[:2] == [("2", "READY", ""), ("1", "READY", "")]
        version, state, reason = index[2]
        assert (version, state) == ("3", "UNAVAILABLE")
        assert reason.startswith("refused: sketchbatch.labels must be")
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
    """With `--watch-models-s 0` a service ignores a new version that another service activates."""
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
