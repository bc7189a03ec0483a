"""Puts the servicer on the wire under the protocol's own name, which is not our package's."""

from typing import TYPE_CHECKING

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from sketchbatch.openinference.v2 import open_inference_pb2 as pb

from ...transport import method_handlers

if TYPE_CHECKING:
    from .servicer import InferenceServicer

_PACKAGE = "inference"
_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

SERVICE = f"{_PACKAGE}.{_SERVICE.name}"


def handlers(servicer: "InferenceServicer") -> grpc.GenericRpcHandler:
    """The protocol's RPCs, answered by the methods of `servicer` of the same names."""
    return method_handlers.handlers(_SERVICE, servicer, name=SERVICE)


def reflection_pool(*others: FileDescriptor) -> descriptor_pool.DescriptorPool:
    """Descriptors for reflection: the files of `others` as they are, and ours in the protocol's package.

    A pool of its own, since the process's pool could then not load tritonclient's or kserve's file.
    """
    pool = descriptor_pool.DescriptorPool()
    for file in others:
        _add(file, pool)
    pool.AddSerializedFile(_as_the_protocol_names_it().SerializeToString())
    return pool


def _add(file: FileDescriptor, pool: descriptor_pool.DescriptorPool) -> None:
    """Adds a file after those it imports."""
    for imported in file.dependencies:
        _add(imported, pool)
    pool.AddSerializedFile(file.serialized_pb)


def _as_the_protocol_names_it() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    ours, file.package = file.package, _PACKAGE
    _rename(list(file.message_type), f".{ours}.", f".{_PACKAGE}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{ours}.", f".{_PACKAGE}.")
        method.output_type = method.output_type.replace(f".{ours}.", f".{_PACKAGE}.")
    return file


def _rename(messages: list[descriptor_pb2.DescriptorProto], old: str, new: str) -> None:
    for message in messages:
        _rename(list(message.nested_type), old, new)
        for field in message.field:
            if field.type_name:  # numbers and texts have none, and setting "" counts as one
                field.type_name = field.type_name.replace(old, new)
