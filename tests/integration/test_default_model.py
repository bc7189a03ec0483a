"""Test the default model, which the package of the service contains: the service needs no --model."""

import pytest
from sketchbatch_client import Client
from sketchbatch_service.settings import SHIPPED_MODELS

ANNOUNCEMENT = "no --model given, the default model is served"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_a_model_the_default_model_is_served_and_named(start_service, root, workers):
    """Without --model, the service serves bear-cat-dog, and one line of the log has its name, version and labels."""
    service = start_service(None, "--workers", workers)
    with Client(service.address) as client:
        model = client.model()
    assert (model.name, model.labels) == ("bear-cat-dog", ("bear", "cat", "dog"))
    _, rest = service.stop()
    [event] = [each for each in (*service.events, *rest) if each["message"] == ANNOUNCEMENT]
    assert (event["model"], event["version"], event["labels"]) == (model.name, model.version, list(model.labels))


def test_the_default_model_is_the_file_of_the_repository(root):
    """The package has the models/bear-cat-dog of the repository with its model card, and no other model."""
    [packaged] = SHIPPED_MODELS.iterdir()
    assert packaged.name == "bear-cat-dog"
    for file in ("2/model.onnx", "README.md"):
        assert (packaged / file).read_bytes() == (root / "models/bear-cat-dog" / file).read_bytes()


def test_a_chosen_model_is_not_announced_as_the_default(tiny_service):
    """A service with --model has no announcement; the line SERVING names the model of requests without a name."""
    [event] = [each for each in tiny_service.events if each["message"] == "SERVING"]
    with Client(tiny_service.address) as client:
        assert event["default_model"] == client.model().name
    assert not [each for each in tiny_service.events if each["message"] == ANNOUNCEMENT]
