"""Classifies drawings through a Sketchbatch service: a client, the readers, the rasteriser and the metrics.

from sketchbatch_client import Client, rasterize
with Client("localhost:50051") as client:
    print(client.classify(rasterize(strokes)).label)
"""

from .calls.async_client import AsyncClient
from .calls.classification import Classification, ModelInfo
from .calls.client import Client
from .calls.credentials import Tls
from .calls.retry import RetryPolicy
from .drawings.rasterize import rasterize
from .errors import (
    DeadlineExceeded,
    FileRefused,
    ModelNotFound,
    Overloaded,
    RequestRefused,
    ServerFailed,
    SketchbatchError,
    Unauthenticated,
    Unavailable,
)

__all__ = [
    "AsyncClient",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "FileRefused",
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
