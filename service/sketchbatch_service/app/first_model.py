"""Wait for the first model, so that a service can start before its volume is filled."""

import asyncio
from pathlib import Path

import structlog

from ..errors import ModelRefused
from ..models.loader import LoadOptions, load_models
from ..models.registry import ModelRegistry
from ..models.repository import ModelFile, find
from .signals import Stop

log = structlog.get_logger()


async def wait_for_models(path: Path, options: LoadOptions, stop: Stop, *, every_s: float) -> ModelRegistry | None:
    """Return the models at `path` once the default model is among them, or None after a stop signal.

    The path is scanned every `every_s` seconds, and its files are loaded again only if they have changed. Each reason
    why there is no model yet is logged once.

    Raises:
        ProviderMissing: As in `load_models`.
    """
    tried: list[ModelFile] | None = None
    reason = ""
    while not stop.requested.done():
        files = _scan(path)
        if files != tried:
            tried = files
            try:
                # In a thread, because health checks must be answered while a model loads.
                return await asyncio.to_thread(load_models, path, options)
            except ModelRefused as exc:
                if reason != str(exc):
                    reason = str(exc)
                    log.warning("waiting for a model", cause=reason)
        await asyncio.wait((stop.requested,), timeout=every_s)
    return None


def _scan(path: Path) -> list[ModelFile]:
    try:
        return find(path)
    except OSError:
        return []
