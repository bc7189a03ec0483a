"""Test that the first models of a service load while their files arrive. The tests call `scan` themselves."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx_models import write_model
from sketchbatch_service.errors import ModelRefused
from sketchbatch_service.models.arrival import ModelArrival
from sketchbatch_service.models.loader import LoadOptions
from structlog.testing import capture_logs

OPTIONS = LoadOptions(provider="cpu", threads=1)


@pytest.fixture
def log() -> Iterator[list[dict]]:
    """Return the events that are logged during the test."""
    with capture_logs() as events:
        yield events


def put(repository: Path, place: str, content: bytes = b"") -> Path:
    """Write a model file, or `content`, to the folder `place` of the repository."""
    path = repository / place / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    if content:
        path.write_bytes(content)
        return path
    return write_model(path)


def served(arrival: ModelArrival) -> list[str]:
    return [f"{model.name}/{model.version}" for model in arrival.scan()]


def refused(log: list[dict]) -> list[str]:
    return [event["model"] for event in log if event["event"] == "model refused"]


def test_models_that_are_there_serve_at_the_first_scan(tmp_path, log):
    """If model files are there when the service starts, the first scan loads them and logs the refused files."""
    put(tmp_path, "farm/1")
    put(tmp_path, "zoo/1", b"not a model")
    models = ModelArrival(tmp_path, OPTIONS).scan()
    assert [model.name for model in models] == ["farm"]
    assert [each.name for each in models.refused] == refused(log) == ["zoo"]


def test_a_file_that_arrives_serves_when_the_second_scan_finds_it_unchanged(tmp_path, log):
    """A file that arrives, or changes, between two scans may be unfinished, so it is not loaded yet."""
    repository = tmp_path / "models"
    arrival = ModelArrival(repository, OPTIONS)
    with pytest.raises(ModelRefused, match="no such model file"):
        arrival.scan()
    part = put(repository, "farm/1", b"the first part of a file")
    with pytest.raises(ModelRefused, match="may be unfinished"):
        arrival.scan()
    write_model(part)
    with pytest.raises(ModelRefused, match="may be unfinished"):
        arrival.scan()
    assert served(arrival) == ["farm/1"]
    assert refused(log) == []


def test_each_file_is_loaded_or_refused_once(tmp_path, log):
    """No scan loads an unchanged file again, even if the file was refused or is not a file of the default model."""
    options = LoadOptions(provider="cpu", threads=1, default_model="zoo")
    put(tmp_path, "farm/1", b"not a model")
    put(tmp_path, "pond/1")
    arrival = ModelArrival(tmp_path, options)
    for _ in range(3):
        with pytest.raises(ModelRefused, match=r"no model 'zoo' to be the default; there are: pond \(version 1\)"):
            arrival.scan()
    assert refused(log) == ["farm"]
    first = put(tmp_path, "zoo/1")
    for _ in range(2):
        with pytest.raises(ModelRefused, match="no model 'zoo'"):
            arrival.scan()
        os.utime(first)  # changed again
    with pytest.raises(ModelRefused, match="no model 'zoo'"):
        arrival.scan()
    assert served(arrival) == ["zoo/1", "pond/1"]
    assert refused(log) == ["farm"]


def test_the_default_model_is_the_first_by_name_even_if_it_is_unfinished(tmp_path):
    """Without --default-model, the default model is the first by name, even if its file may be unfinished.

    Until that file is loaded, a model with a later name does not become the default model.
    """
    arrival = ModelArrival(tmp_path, OPTIONS)
    with pytest.raises(ModelRefused):
        arrival.scan()
    put(tmp_path, "zoo/1")
    with pytest.raises(ModelRefused):
        arrival.scan()
    put(tmp_path, "farm/1")
    with pytest.raises(ModelRefused, match="no model 'farm' to be the default"):
        arrival.scan()
    assert served(arrival) == ["farm/1", "zoo/1"]


def test_a_single_file_may_arrive(tmp_path):
    """`--model` may name a single file that does not exist yet; the file is served when it has arrived."""
    file = tmp_path / "tiny.onnx"
    arrival = ModelArrival(file, OPTIONS)
    with pytest.raises(ModelRefused, match="no such model file"):
        arrival.scan()
    write_model(file)
    with pytest.raises(ModelRefused, match="may be unfinished"):
        arrival.scan()
    assert served(arrival) == ["tiny/1"]
