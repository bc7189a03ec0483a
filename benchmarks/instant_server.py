"""Answer Classify with fixed bytes, without a model; the request rate of this server is the upper limit of a transport.

`python benchmarks/instant_server.py aio|core` prints the server's address and serves until the process is killed.
`aio` is a bare `grpc.aio.server`; `core` is the service's own server on grpcio's C core. Both receive the whole
request, and neither parses it.
"""

import asyncio
import sys
import threading
from functools import lru_cache

import grpc
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch_service.app import process

_SERVICE, _METHOD = "sketchbatch.v1.ClassifierService", "Classify"
_CLASSES = 3
_ROW_BYTES = 784


def _answer(message: bytes) -> bytes:
    return _answer_of(len(message) // _ROW_BYTES)  # the other fields of a message have fewer bytes than a row


@lru_cache
def _answer_of(rows: int) -> bytes:
    return pb.ClassifyResponse(rows=rows, scores=bytes(4 * _CLASSES * rows)).SerializeToString()


async def _classify_aio(message: bytes, context: object) -> bytes:
    return _answer(message)


def _classify_core(message, call) -> None:
    call.respond(_answer(message))


def _handler(classify) -> grpc.GenericRpcHandler:
    method = grpc.unary_unary_rpc_method_handler(classify, request_deserializer=bytes, response_serializer=bytes)
    return grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method})


async def serve_aio() -> None:
    """Serve with the public API of grpcio until the process is killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_handler(_classify_aio),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def serve_core() -> None:
    """Serve with the service's transport `core` until the process is killed."""
    from sketchbatch_service.transport.core_server import CoreServer

    server = CoreServer([("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_handler(_classify_core),))
    address = server.listen("127.0.0.1:0")
    await server.start()

    def poll() -> None:
        while server.poll(blocks=True):
            pass

    threading.Thread(target=poll, daemon=True).start()
    print(address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    process.prepare("warning")  # sets up malloc and gRPC's environment as in the service
    asyncio.run({"aio": serve_aio, "core": serve_core}[sys.argv[1]]())
