"""Set health to NOT_SERVING while a model is failing, and submit trial requests to that model until it works.

Health reflects the most recent model calls. The service still accepts requests while health is NOT_SERVING. Trial
requests, each a blank drawing, are necessary because a load balancer may send no requests in this state.
"""

import asyncio
import time
from contextlib import suppress

import numpy as np
import structlog

from ..arrays import ROW_SHAPE
from ..errors import ServiceError
from ..models.registry import ModelRegistry, ServedModel
from .health import HealthServicer

log = structlog.get_logger()

_BLANK = np.zeros((1, *ROW_SHAPE), np.uint8)


async def monitor_health(models: ModelRegistry, health: HealthServicer, *, trial_every_s: float = 1.0) -> None:
    """Update `health` from the state of `models` until this coroutine is cancelled; the thread pool must run."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    failing: list[ServedModel] = []

    def note_change() -> None:
        with suppress(RuntimeError):  # the loop is closed: the service is ending
            loop.call_soon_threadsafe(changed.set)

    models.on_change = note_change
    while True:
        changed.clear()
        for model in models:  # including models that were activated since the last iteration
            model.batcher.on_health = note_change
        before, failing = failing, [model for model in models if model.batcher.is_failing]
        if failing != before:
            await (health.fail() if failing else health.serve())
            _log_change(before, failing)
        for model in failing:
            with suppress(ServiceError):  # a full queue needs no trial: its own requests show whether the model works
                model.batcher.submit(_BLANK, expires_at=time.monotonic() + trial_every_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), trial_every_s if failing else None)


def _log_change(before: list[ServedModel], failing: list[ServedModel]) -> None:
    for model in failing:
        if model not in before:
            log.error("model failing, NOT_SERVING", model=model.name, version=model.version)
    for model in before:
        if model not in failing:
            log.info("model works again", model=model.name, version=model.version, serving=not failing)
