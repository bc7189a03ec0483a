"""Register the servicer under the protocol's name, `inference.GRPCInferenceService`; our .proto has another package."""

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from sketchbatch.openinference.v2 import open_inference_pb2 as pb

from .. import method_handlers
from . import codec

_PACKAGE = "inference"
_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

SERVICE = f"{_PACKAGE}.{_SERVICE.name}"


def handlers(servicer: object) -> grpc.GenericRpcHandler:
    """Return the handlers of the protocol's RPCs; methods of `servicer` with the same names answer them."""
    readers = {"ModelInfer": codec.read, "ModelStreamInfer": codec.read}
    return method_handlers.handlers(_SERVICE, servicer, name=SERVICE, readers=readers)


def reflection_pool(*others: FileDescriptor) -> descriptor_pool.DescriptorPool:
    """Return a pool of descriptors for reflection: `others`, and our .proto file, renamed to the protocol's package.

    The pool is separate, because a process may import tritonclient or kserve. Their .proto files have the protocol's
    package, too, and would conflict with our renamed file in the default pool.
    """
    pool = descriptor_pool.DescriptorPool()
    for file in others:
        _add(file, pool)
    pool.AddSerializedFile(_renamed_file().SerializeToString())
    return pool


def _add(file: FileDescriptor, pool: descriptor_pool.DescriptorPool) -> None:
    """Add the files that `file` imports, then `file`."""
    for imported in file.dependencies:
        _add(imported, pool)
    pool.AddSerializedFile(file.serialized_pb)


def _renamed_file() -> descriptor_pb2.FileDescriptorProto:
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
            if field.type_name:  # scalar fields have no type name, and must not get an empty one
                field.type_name = field.type_name.replace(old, new)
