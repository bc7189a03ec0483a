"""Send many drawings over one stream with the generated stubs, and continue after a server has stopped.

The stubs are in the distribution sketchbatch-protos. The client of this project is not used.
"""

import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1.classifier_pb2_grpc import ClassifierServiceStub

EXAMPLES = Path(__file__).parent.parent
SERVER = os.environ.get("SKETCHBATCH_SERVER", "localhost:50051")
MESSAGES = [pb.ClassifyStreamRequest(bitmaps=(EXAMPLES / "cat.bitmap").read_bytes() * 256, top_k=1)] * 20
OPTIONS = [
    ("grpc.service_config", (EXAMPLES / "retry.json").read_text()),  # retries of unary calls
    ("grpc.max_receive_message_length", 64 << 20),  # the scores of all classes can be larger than the default, 4 MiB
    ("grpc.per_rpc_retry_buffer_size", 16 << 20),
    ("grpc.keepalive_time_ms", 20_000),
]


def responses(stub: ClassifierServiceStub) -> Iterator[pb.ClassifyStreamResponse]:
    """Yield one response per message, in order. After UNAVAILABLE, send all messages without a response again."""
    answered = attempts = 0
    while answered < len(MESSAGES):
        try:
            for response in stub.ClassifyStream(itertools.islice(MESSAGES, answered, None), timeout=60):
                answered, attempts = answered + 1, 0
                yield response
        except grpc.RpcError as error:
            attempts += 1
            if error.code() is not grpc.StatusCode.UNAVAILABLE or attempts == 5:
                raise
            print(f"{answered} responses, then UNAVAILABLE: a new stream sends the rest", file=sys.stderr)
            time.sleep(0.1 * 2**attempts)


def main() -> int:
    """Return 0, or 1 after an error."""
    rows: dict[str, int] = {}
    with grpc.insecure_channel(SERVER, OPTIONS) as channel:
        stub = ClassifierServiceStub(channel)
        try:
            labels = stub.GetModel(pb.GetModelRequest(), timeout=10).model.labels
            for response in responses(stub):
                if response.HasField("error"):  # the service rejected one message; the stream continues
                    print(f"error: {response.error.message}", file=sys.stderr)
                    return 1
                for index in response.class_index:
                    rows[labels[index]] = rows.get(labels[index], 0) + 1
        except grpc.RpcError as error:
            print(f"error: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    for label, count in rows.items():
        print(f"{count} of {256 * len(MESSAGES)}: {label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
