"""A running service takes new models, refuses broken ones and goes back, and no request under way notices."""

import shutil
import time
import urllib.request

import grpc
import pytest
from model_callers import Callers, Repository
from sketchbatch.v1 import classifier_pb2 as pb


def wait_until(is_so) -> None:
    """Asks until it is."""
    ends_at = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < ends_at, "it never came"
        time.sleep(0.02)


@pytest.mark.timeout(60)
def test_versions_come_and_go_under_load(start_service, tmp_path):
    """No call fails, every answer is of the version that it names; rejections and loads can be seen from outside."""
    repository = Repository(tmp_path / "models")
    repository.write(1)
    service = start_service(
        repository.path, "--watch-models-s", "0.1", "--metrics-address", "127.0.0.1:0", "--provider", "cpu"
    )

    def metrics() -> str:
        with urllib.request.urlopen(f"http://{service.metrics_address}/metrics") as page:
            return page.read().decode()

    with Callers(service.address, repository, each=2) as callers:
        repository.write(2)
        wait_until(lambda: callers.newest() == "2")
        repository.write(3, labels=["ant"])  # broken
        wait_until(lambda: len(callers.rpc("RepositoryIndex").models) == 3)
        index = [(each.version, each.state, each.reason) for each in callers.rpc("RepositoryIndex").models]
        assert index[:2] == [("2", "READY", ""), ("1", "READY", "")]
        version, state, reason = index[2]
        assert (version, state) == ("3", "UNAVAILABLE")
        assert reason.startswith("refused: sketchbatch.labels must be")
        assert str(tmp_path) not in reason
        assert not callers.rpc("ModelReady", name="farm", version="3").ready
        assert [each.version for each in callers.rpc("RepositoryIndex", ready=True).models] == ["2", "1"]
        assert "sketchbatch_refused_models{" in metrics()
        repository.write(2)  # anew, in place
        wait_until(lambda: 'sketchbatch_model_loads_total{outcome="served",worker="1"} 3.0' in metrics())
        assert 'sketchbatch_model_loads_total{outcome="refused",worker="1"} 1.0' in metrics()
        shutil.rmtree(repository.path / "farm" / "2")  # back
        wait_until(lambda: callers.newest() == "1")
        with pytest.raises(grpc.RpcError) as caught:
            callers.stub.Classify(pb.ClassifyRequest(model_version="2", bitmaps=bytes(784)))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert [each.version for each in callers.rpc("ModelStatistics").model_stats] == ["1"]
    assert callers.outcomes == {"right": callers.outcomes.total()}
    assert callers.versions.keys() == {"1", "2"}
    code, log = service.stop()
    assert code == 0
    told = [(event["message"], event.get("version")) for event in log if event["message"].startswith("model ")]
    assert [each for each in told if each[0] not in ("model found", "model unloaded")] == [
        ("model serves", "2"),
        ("model refused, what is served stays", "3"),
        ("model serves", "2"),
        ("model retired", "2"),
        ("model retired", "2"),
    ]


def test_each_worker_watches(start_service, tmp_path):
    """All of them come to serve it; meanwhile an answer's version is that of the worker which gave it."""
    repository = Repository(tmp_path / "models")
    repository.write(1)
    service = start_service(
        repository.path, "--watch-models-s", "0.1", "--workers", "2", "--metrics-address", "127.0.0.1:0"
    )
    repository.write(2)

    def loads() -> int:
        with urllib.request.urlopen(f"http://{service.metrics_address}/metrics") as page:
            return sum(
                'outcome="served"' in line and line.endswith(" 2.0") for line in page.read().decode().splitlines()
            )

    wait_until(lambda: loads() == 2)


def test_a_service_may_be_told_not_to_look(start_service, tmp_path):
    """What is there at start is served for good."""
    repository = Repository(tmp_path / "models")
    repository.write(1)
    service = start_service(repository.path, "--watch-models-s", "0", "--provider", "cpu")
    repository.write(2)
    with Callers(service.address, repository, each=0) as callers:
        time.sleep(0.3)
        assert callers.newest() == "1"
