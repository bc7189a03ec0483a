"""Classify drawings with a Sketchbatch service: clients, readers, rasteriser and metrics.

For example:

    from sketchbatch_client import Client, rasterize
    with Client("localhost:50051") as client:
        print(client.classify(rasterize(strokes)).label)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    DeadlineExceeded,
    DiskFull,
    DrawingRefused,
    ExtraMissing,
    FileChanged,
    FileRefused,
    JobNotReady,
    JobRefused,
    ModelChanged,
    ModelNotFound,
    OutputRefused,
    Overloaded,
    RequestRefused,
    ServerFailed,
    SketchbatchError,
    Unauthenticated,
    Unavailable,
)

if TYPE_CHECKING:
    from sketchbatch.rejection import Rejection, RejectionThreshold

    from .drawings.bitmap_arrays import InkWarning
    from .drawings.rasterize import StrokeWarning, rasterize
    from .rpc.async_client import AsyncClient
    from .rpc.classification import Classification, ModelInfo
    from .rpc.client import Client
    from .rpc.connections.credentials import Tls
    from .rpc.retries.retry_policy import RetryPolicy

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "DiskFull",
    "DrawingRefused",
    "ExtraMissing",
    "FileChanged",
    "FileRefused",
    "InkWarning",
    "JobNotReady",
    "JobRefused",
    "ModelChanged",
    "ModelInfo",
    "ModelNotFound",
    "OutputRefused",
    "Overloaded",
    "Rejection",
    "RejectionThreshold",
    "RequestRefused",
    "RetryPolicy",
    "ServerFailed",
    "SketchbatchError",
    "StrokeWarning",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "rasterize",
]

_MODULES = {
    "AsyncClient": ".rpc.async_client",
    "Classification": ".rpc.classification",
    "Client": ".rpc.client",
    "InkWarning": ".drawings.bitmap_arrays",
    "ModelInfo": ".rpc.classification",
    "Rejection": "sketchbatch.rejection",
    "RejectionThreshold": "sketchbatch.rejection",
    "RetryPolicy": ".rpc.retries.retry_policy",
    "StrokeWarning": ".drawings.rasterize",
    "Tls": ".rpc.connections.credentials",
    "rasterize": ".drawings.rasterize",
}
"""Each name is imported when it is first used: `sketchbatch` sets up gRPC's log before gRPC is imported."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
