"""Read the details that a service adds to an error: messages of google.rpc in the trailing metadata."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2


def newest_version(error: grpc.RpcError) -> str:
    """Return the newest version that the server serves of the model that was not found; empty = not stated."""
    pairs: Any = error.trailing_metadata() or ()  # of grpc or of grpc.aio
    info = error_details_pb2.ErrorInfo()
    try:
        status = status_pb2.Status.FromString(dict(pairs).get("grpc-status-details-bin", b""))
        is_stated = any(detail.Unpack(info) for detail in status.details)
    except DecodeError:  # another server's trailer of this name
        return ""
    return info.metadata["newest_version"] if is_stated else ""


def is_retired(version: str, error: grpc.RpcError) -> bool:
    """Return whether the server that did not find `version` serves a newer version of the same model."""
    newest = newest_version(error)
    return version.isdecimal() and newest.isdecimal() and int(newest) > int(version)
