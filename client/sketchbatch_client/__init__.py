"""Classify drawings with a Sketchbatch service: clients, readers, rasteriser and metrics.

from sketchbatch_client import Client, rasterize
with Client("localhost:50051") as client:
    print(client.classify(rasterize(strokes)).label)
"""

from .drawings.bitmap_arrays import InkWarning
from .drawings.rasterize import rasterize
from .errors import (
    DeadlineExceeded,
    FileRefused,
    ModelChanged,
    ModelNotFound,
    Overloaded,
    RequestRefused,
    ServerFailed,
    SketchbatchError,
    Unauthenticated,
    Unavailable,
)
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
    "FileRefused",
    "InkWarning",
    "ModelChanged",
    "ModelInfo",
    "ModelNotFound",
    "Overloaded",
    "RequestRefused",
    "RetryPolicy",
    "ServerFailed",
    "SketchbatchError",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "rasterize",
]
