"""Puts a servicer on the wire, method by method, as generated code would, with readers of its own where that pays."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

Reader = Callable[[bytes], object]
"""Makes a request of the bytes of its message; raises protobuf's `DecodeError`."""


def handlers(
    service: ServiceDescriptor, servicer: object, *, name: str = "", readers: Mapping[str, Reader] | None = None
) -> grpc.GenericRpcHandler:
    """The RPCs of `service`, answered by the methods of `servicer` of the same names.

    Args:
        service: What there is to answer.
        servicer: Who answers.
        name: What the service is called on the wire, if not as its file says.
        readers: By method, what reads its requests, if not protobuf.
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
