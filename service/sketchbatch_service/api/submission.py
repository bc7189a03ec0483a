"""Queue a request with the model that the request names, also if that model is replaced at the same moment."""

from collections.abc import Callable
from typing import TypeVar

from ..errors import ShuttingDown
from ..models.registry import ModelRegistry, ServedModel

_Submitted = TypeVar("_Submitted")


def submit_to_served(
    models: ModelRegistry, name: str, version: str, submit: Callable[[ServedModel], _Submitted]
) -> _Submitted:
    """Return the result of `submit` for the model with this name and version.

    The model may be replaced and unloaded after it was found, and then rejects the request. `submit` is therefore
    called again if another model has taken its place.

    Raises:
        ModelNotFound: There is no such model, or no longer.
        ShuttingDown: The model is closed, and no other model has taken its place.
        ServiceError: `submit` raised this error.
    """
    model = models.get(name, version)
    while True:
        try:
            return submit(model)
        except ShuttingDown:
            found, model = model, models.get(name, version)
            if model.batcher is found.batcher:
                raise
