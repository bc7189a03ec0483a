"""Answer Classify at once, without a model; the request rate of this server is the upper limit of a transport.

`python benchmarks/instant_server.py aio|core` prints the server's address and serves until the process is killed.
`aio` is a bare `grpc.aio.server` with the generated servicer; `core` is the service's own server on grpcio's C core.
"""

import asyncio
import sys
import threading

import grpc
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from sketchbatch_service.app import process

_CLASSES = 3
_ROW_BYTES = 784
_ANSWERS: dict[int, pb.ClassifyResponse] = {}  # responses by their number of rows


def _answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    rows = len(request.bitmaps) // _ROW_BYTES
    if rows not in _ANSWERS:
        _ANSWERS[rows] = pb.ClassifyResponse(rows=rows, scores=bytes(4 * _CLASSES * rows))
    return _ANSWERS[rows]


class AioClassifier(classifier_pb2_grpc.ClassifierServiceServicer):
    """Answers on the event loop."""

    async def Classify(self, request: pb.ClassifyRequest, context: object) -> pb.ClassifyResponse:  # noqa: N802
        return _answer(request)


class CoreClassifier(classifier_pb2_grpc.ClassifierServiceServicer):
    """Answers on the polling thread."""

    def Classify(self, request, call) -> None:  # noqa: N802
        call.respond(_answer(request))


async def serve_aio() -> None:
    """Serve with the public API of grpcio until the process is killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(AioClassifier(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def serve_core() -> None:
    """Serve with the service's transport `core` until the process is killed."""
    from sketchbatch_service.transport.core_server import CoreServer

    server = CoreServer([("grpc.max_receive_message_length", -1)])
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(CoreClassifier(), server)
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
