"""Test that a service whose connections age stops without refusing a request, even of clients without retries."""

import json
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

pytestmark = [pytest.mark.timeout(60), pytest.mark.both_transports]

QUICK = ("--max-connection-age-s", "0.5", "--lame-duck-s", "3")
"""Flags for a quick stop. The listener is closed 1.45 s after SIGTERM.

That is the lame duck time of 3 s less the time to leave: 1.1 * 0.5 s until the last connection has its maximum age, and
1 s for small calls.
"""

PATIENT = ("--max-connection-age-s", "20", "--lame-duck-s", "23.5")
"""Flags with which the listener is closed 0.5 s after SIGTERM, while open connections stay open for many seconds."""

ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
REQUEST = pb.ClassifyRequest(bitmaps=bytes(784))
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_replica_leaves_without_refusing_a_request(start_service, tiny_model, workers):
    """While one of two replicas stops, no request fails, even if clients neither watch health nor retry."""
    leaving = start_service(tiny_model, *QUICK, "--workers", workers)
    other = start_service(tiny_model)
    target = f"ipv4:{leaving.address},{other.address}"
    errors: list[grpc.RpcError] = []
    has_left = threading.Event()

    def call() -> None:
        with grpc.insecure_channel(target, [("grpc.service_config", ROUND_ROBIN), OWN_CONNECTION]) as channel:
            classify = classifier_pb2_grpc.ClassifierServiceStub(channel).Classify
            while not has_left.wait(0.002):
                try:
                    classify(REQUEST)
                except grpc.RpcError as exc:
                    errors.append(exc)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        code, log = leaving.stop()
    finally:
        has_left.set()
        for caller in callers:
            caller.join()
    assert code == 0
    assert "leaving" in [event["message"] for event in log]
    assert not errors


def test_a_leaving_replica_answers_open_connections_and_refuses_new_ones(start_service, tiny_model):
    """At SIGTERM, Check reports NOT_SERVING. Watch reports NOT_SERVING only when the listener is closed.

    Calls over open connections still receive responses after that.
    """
    service = start_service(tiny_model, *PATIENT)
    with grpc.insecure_channel(service.address, [OWN_CONNECTION]) as channel:
        classify = classifier_pb2_grpc.ClassifierServiceStub(channel).Classify
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        service.process.terminate()
        service.wait_for("stopping")
        assert health.Check(health_pb2.HealthCheckRequest()).status == NOT_SERVING
        service.wait_for("leaving")
        assert next(watch).status == NOT_SERVING
        assert classify(REQUEST).rows == 1
        assert refusal(service.address).code() is grpc.StatusCode.UNAVAILABLE
        assert classify(REQUEST).rows == 1
        service.process.terminate()
        assert service.stop()[0] == 0


def refusal(address: str) -> grpc.RpcError:
    """Return the error of a call on a new connection.

    The function repeats the call until it fails, because the log event comes shortly before the listener is closed.
    """
    while True:
        with grpc.insecure_channel(address, [OWN_CONNECTION]) as channel:
            try:
                classifier_pb2_grpc.ClassifierServiceStub(channel).Classify(REQUEST, timeout=10)
            except grpc.RpcError as exc:
                return exc
