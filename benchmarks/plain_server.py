"""A plain grpcio server in 40 lines, which runs the model once per request.

`python benchmarks/plain_server.py MODEL` prints the server's address and serves until the process is killed.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import onnxruntime as ort
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc


class Classifier(classifier_pb2_grpc.ClassifierServiceServicer):
    """One session with ONNX Runtime's default settings, called from every gRPC thread."""

    def __init__(self, model: str) -> None:
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def Classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:  # noqa: N802
        bitmaps = np.frombuffer(request.bitmaps, np.uint8).reshape(-1, 28, 28)
        scores = self._session.run(["scores"], {"bitmaps": bitmaps})[0]
        return pb.ClassifyResponse(rows=len(scores), scores=scores.tobytes())


def serve(model: str) -> None:
    """Serve until the process is killed."""
    server = grpc.server(
        ThreadPoolExecutor(max_workers=10),  # ten threads, as in gRPC's own examples
        options=[("grpc.max_receive_message_length", -1)],
    )
    classifier_pb2_grpc.add_ClassifierServiceServicer_to_server(Classifier(model), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    serve(sys.argv[1])
