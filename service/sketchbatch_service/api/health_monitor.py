"""Turns health to NOT_SERVING while a model keeps failing, and asks such a model again until it works.

Health is what the last real model calls say. Requests are still taken and tried meanwhile: whoever asks gets an answer
or an error of their own. A blank drawing is asked besides, as any caller would, since a balancer may send nobody.
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


async def monitor_health(models: ModelRegistry, health: HealthServicer, *, ask_every_s: float = 1.0) -> None:
    """Keeps `health` to what `models` do, until it is cancelled; to be started once a crew runs them."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    failing: list[ServedModel] = []

    def note_change() -> None:
        with suppress(RuntimeError):  # the loop is closed: we are at our end
            loop.call_soon_threadsafe(changed.set)

    models.on_change = note_change
    while True:
        changed.clear()
        for model in models:  # others may have come
            model.batcher.on_health = note_change
        before, failing = failing, [model for model in models if model.batcher.is_failing]
        if failing != before:
            await (health.fail() if failing else health.serve())
            _log_change(before, failing)
        for model in failing:
            _ask(model, time.monotonic() + ask_every_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), ask_every_s if failing else None)


def _ask(model: ServedModel, expires_at: float) -> None:
    with suppress(ServiceError):  # a full queue: others ask
        model.batcher.submit(_BLANK, expires_at=expires_at)


def _log_change(before: list[ServedModel], failing: list[ServedModel]) -> None:
    for model in failing:
        if model not in before:
            log.error("a model keeps failing, NOT_SERVING", model=model.name, version=model.version)
    for model in before:
        if model not in failing:
            log.info("a model works again", model=model.name, version=model.version, serving=not failing)
