"""Wait for the first model, so that a service can start before its volume is filled."""

import asyncio
from pathlib import Path

import structlog

from ..background import Component, ComponentName
from ..errors import StartError
from ..models.arrival import ModelArrival
from ..models.loader import LoadOptions
from ..models.registry import ModelRegistry
from .signals import Stop

log = structlog.get_logger()


async def wait_for_models(
    path: Path, options: LoadOptions, stop: Stop, *, every_s: float, **addresses: str
) -> ModelRegistry | None:
    """Return the models at `path` once the default model is among them, or None after a stop signal.

    The path is scanned every `every_s` seconds. Files load on another thread, because health checks must be answered in
    the meantime. `addresses` are the open ports, for the log.
    """
    arrival = ModelArrival(path, options)
    component = Component(ComponentName.MODEL_WATCHER)
    is_waiting = False
    while not stop.requested.done():
        try:
            models = await asyncio.to_thread(arrival.scan)
            return None if stop.requested.done() else models
        except StartError as exc:
            if not is_waiting:
                log.warning("waiting for a model", cause=str(exc), path=str(path), **addresses)
                is_waiting = True
        except Exception as exc:  # for example an error of a file system that fails for a moment
            component.record_error(exc)
        await asyncio.wait((stop.requested,), timeout=every_s)
    return None
