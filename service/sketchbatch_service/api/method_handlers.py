"""Register the methods of a servicer, as generated code does; a method may have its own, faster request reader."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

Reader = Callable[[bytes], object]  # parses a message into a request; raises protobuf's `DecodeError`


def handlers(
    service: ServiceDescriptor, servicer: object, *, name: str = "", readers: Mapping[str, Reader] | None = None
) -> grpc.GenericRpcHandler:
    """Return a handler for the RPCs of `service`; `servicer` has a method for each RPC, with the RPC's name.

    `name` is the service's name on the wire; empty = its name in the .proto file. `readers` holds request readers by
    RPC; protobuf reads the requests of all other RPCs.
    """
    methods = {method.name: _handler(method, servicer, (readers or {}).get(method.name)) for method in service.methods}
    return grpc.method_handlers_generic_handler(name or service.full_name, methods)


def _handler(method: MethodDescriptor, servicer: object, reader: Reader | None) -> "grpc.RpcMethodHandler[Any, Any]":
    kind = grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
    return kind(
        getattr(servicer, method.name),
        request_deserializer=reader or message_factory.GetMessageClass(method.input_type).FromString,
        response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
    )
