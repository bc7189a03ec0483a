"""Classifies drawings through a Sketchbatch service: a client, the readers, the rasteriser and the metrics.

from sketchbatch_client import Client, rasterize
with Client("localhost:50051") as client:
    print(client.classify(rasterize(strokes)).label)
"""

from .async_client import AsyncClient
from .classification import Classification, ModelInfo
from .client import Client
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
from .rasterize import rasterize

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
    "ServerFailed",
    "SketchbatchError",
    "Unauthenticated",
    "Unavailable",
    "rasterize",
]
