"""Relay the calls of a client to a real service, and fail some of them as a server that drains fails them."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc

CLASSIFY = "/sketchbatch.v1.ClassifierService/Classify"
STREAM = "/sketchbatch.v1.ClassifierService/ClassifyStream"


class Relay(grpc.GenericRpcHandler):
    """Forward every call; every second attempt of Classify reaches the service, the others end with UNAVAILABLE.

    The first stream ends with UNAVAILABLE after its first response, like a stream to a server that drains. If
    `holds_rows` is set, calls of Classify receive no response at all.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self.address = ""
        self.holds_rows = False
        self.attempts: Counter[str] = Counter()  # by method
        self._channel = channel
        self._lock = threading.Lock()

    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: self._forward(details.method, requests, context)
        )

    def _forward(self, method: str, requests, context):
        with self._lock:
            self.attempts[method] += 1
            attempt = self.attempts[method]
        if method == CLASSIFY and self.holds_rows:
            ended = threading.Event()
            if context.add_callback(ended.set):
                ended.wait()
            return
        if method == CLASSIFY and attempt % 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "this server drains")
        remaining_s = min(context.time_remaining(), 60)  # of a call without a deadline: three centuries
        call = self._channel.stream_stream(method)(requests, timeout=remaining_s)
        context.add_callback(call.cancel)
        try:
            for response in call:
                yield response
                if method == STREAM and attempt == 1:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "this server drains")
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())


@contextmanager
def relaying(address: str) -> Iterator[Relay]:
    """Run a relay to the service at `address` until the context ends."""
    unlimited = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, unlimited) as channel, futures.ThreadPoolExecutor(32) as pool:
        relay = Relay(channel)
        server = grpc.server(pool, handlers=[relay], options=unlimited)
        relay.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield relay
        finally:
            server.stop(0).wait()
