"""Set health to NOT_SERVING while a model is failing, and submit trial requests to that model until it works.

Health is also NOT_SERVING while a component fails that every request needs, such as the thread pool.

Health reflects the most recent model calls. The service still accepts requests while health is NOT_SERVING. Trial
requests, each a blank drawing, are necessary because a load balancer may send no requests in this state.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import numpy as np
import structlog

from ..arrays import ROW_SHAPE
from ..background import Component, ComponentName
from ..errors import ServiceError
from ..models.registry import ModelRegistry, ServedModel
from .health import HealthServicer

log = structlog.get_logger()

_BLANK = np.zeros((1, *ROW_SHAPE), np.uint8)


async def monitor_health(
    models: ModelRegistry, health: HealthServicer, *, needed: Sequence[Component] = (), trial_every_s: float = 1.0
) -> None:
    """Update `health` from the state of `models` until this coroutine is cancelled; the thread pool must run.

    Health is also NOT_SERVING while one of the `needed` components is failing, or the monitor itself: the state of the
    models is then unknown.
    """
    monitor = Component(ComponentName.HEALTH_MONITOR)
    while True:
        try:
            await _monitor(models, health, needed, monitor, trial_every_s)
        except Exception as exc:
            delay_s = monitor.record_error(exc)
        if monitor.is_failing:
            await health.fail()
        await asyncio.sleep(delay_s)


async def _monitor(
    models: ModelRegistry,
    health: HealthServicer,
    needed: Sequence[Component],
    monitor: Component,
    trial_every_s: float,
) -> NoReturn:
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    failing: list[ServedModel | Component] | None = None  # None = not known yet

    def note_change() -> None:
        with suppress(RuntimeError):  # the loop is closed: the service is ending
            loop.call_soon_threadsafe(changed.set)

    models.on_change = note_change
    for component in needed:
        component.on_health = note_change
    while True:
        changed.clear()
        for model in models:  # including models that were activated since the last iteration
            model.batcher.on_health = note_change
        failing_models = [model for model in models if model.batcher.is_failing]
        before, failing = failing, [*failing_models, *(component for component in needed if component.is_failing)]
        if failing != before:
            await (health.fail() if failing else health.serve())
            _log_change(before or [], failing)
        for model in failing_models:
            with suppress(ServiceError):  # a full queue needs no trial: its own requests show whether the model works
                model.batcher.submit(_BLANK, expires_at=time.monotonic() + trial_every_s)
        monitor.record_success()
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), trial_every_s if failing_models else None)


def _log_change(before: Sequence[ServedModel | Component], failing: Sequence[ServedModel | Component]) -> None:
    for each in failing:
        if each not in before:
            if isinstance(each, Component):
                log.error("component failing, NOT_SERVING", component=each.name)
            else:
                log.error("model failing, NOT_SERVING", model=each.name, version=each.version)
    for each in before:
        if each not in failing and isinstance(each, ServedModel):
            log.info("model works again", model=each.name, version=each.version, serving=not failing)
