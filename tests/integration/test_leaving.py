"""Test that a service whose connections age refuses no request while it stops.

This must be true for every load-balancing policy of the clients.
"""

import json
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

pytestmark = [pytest.mark.timeout(60), pytest.mark.both_transports]

QUICK = ("--max-connection-age-s", "0.5", "--lame-duck-s", "3")
"""Flags with which the listener is closed 1.45 s after SIGTERM, and the last connection 0.55 s later.

With gRPC's jitter of 10 %, the maximum age of a connection is 0.55 s. With 1 s more for GOAWAY, leaving takes 1.55 s.
It therefore begins 1.45 s after the start of the lame duck time of 3 s.
"""

PATIENT = ("--max-connection-age-s", "20", "--lame-duck-s", "23.5")
"""Flags with which the listener is closed 0.5 s after SIGTERM, and connections stay open for seconds after that.

Leaving takes the last 23 s of the lame duck time: 20 s, 10 % more by gRPC's jitter, and 1 s for GOAWAY.
"""

POLICIES = {
    "all replicas": {"loadBalancingConfig": [{"round_robin": {}}]},
    "all replicas with health": {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "sketchbatch.v1.ClassifierService"},
    },
    "one replica": {"loadBalancingConfig": [{"pick_first": {}}]},
}
"""gRPC service configs of the clients: how a client chooses among the replicas that it knows."""

OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
REQUEST = pb.ClassifyRequest(bitmaps=bytes(784))
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_replica_leaves_without_refusing_a_request(start_service, tiny_model, workers):
    """While one of two replicas stops, no request fails, with any load-balancing policy and without retries."""
    leaving = start_service(tiny_model, *QUICK, "--workers", workers)
    other = start_service(tiny_model)
    target = f"ipv4:{leaving.address},{other.address}"
    errors: list[grpc.RpcError] = []
    has_left = threading.Event()

    def call(policy: dict) -> None:
        config = json.dumps(policy)
        with grpc.insecure_channel(target, [("grpc.service_config", config), OWN_CONNECTION]) as channel:
            classify = classifier_pb2_grpc.ClassifierServiceStub(channel).Classify
            while not has_left.wait(0.002):
                try:
                    classify(REQUEST)
                except grpc.RpcError as exc:
                    errors.append(exc)

    callers = [threading.Thread(target=call, args=(policy,)) for policy in POLICIES.values() for _ in range(2)]
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
    """At SIGTERM, Check reports NOT_SERVING. When the listener is closed, Watch reports NOT_SERVING, too.

    Calls on open connections are then still answered, and new connections are refused.
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
    """Repeat a call, each time on a new connection, until the call fails; return its error.

    The service closes its listener shortly after it has logged the event `leaving`.
    """
    while True:
        with grpc.insecure_channel(address, [OWN_CONNECTION]) as channel:
            try:
                classifier_pb2_grpc.ClassifierServiceStub(channel).Classify(REQUEST, timeout=10)
            except grpc.RpcError as exc:
                return exc
