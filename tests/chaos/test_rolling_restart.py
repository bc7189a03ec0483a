"""Restart three servers one after another under load from clients that never retry."""

import json
import socket
import threading
import time
from collections import Counter

import grpc
import pytest
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc

pytestmark = [pytest.mark.chaos, pytest.mark.both_transports, pytest.mark.timeout(180)]

SERVERS, CALLERS, REQUESTS = 3, 16, 10_000
BALANCED = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rolling_restart_loses_nothing(start_service, tiny_model, capsys, workers):
    """While three servers restart one after another, every request receives exactly one response.

    Health reports NOT_SERVING before a stopping server rejects calls, so the clients use the other servers in time.
    """
    ports = [free_port() for _ in range(SERVERS)]
    flags = [("--address", f"127.0.0.1:{port}", "--lame-duck-s", "2", "--workers", str(workers)) for port in ports]
    services = [start_service(tiny_model, *each) for each in flags]
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    outcomes: Counter = Counter()
    answered = [0] * CALLERS
    restarted = threading.Event()

    def classify(caller):
        options = [("grpc.service_config", BALANCED), ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(target, options=options) as channel:
            stub = classifier_pb2_grpc.ClassifierServiceStub(channel)
            number = 0
            while not restarted.is_set() or number < REQUESTS / CALLERS:
                number += 1
                request = pb.ClassifyRequest(bitmaps=bytes([number % 256]) * 784, request_id=f"{caller}-{number}")
                try:
                    answer = stub.Classify(request)
                except grpc.RpcError as exc:
                    outcomes[f"{exc.code().name}: {exc.details()}"] += 1
                else:
                    assert (answer.request_id, answer.rows) == (request.request_id, 1)
                    answered[caller] += 1
            outcomes["sent"] += number

    threads = [threading.Thread(target=classify, args=(caller,)) for caller in range(CALLERS)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    for number, flag in enumerate(flags):
        code, _ = services[number].stop()
        assert code == 0
        services[number] = start_service(tiny_model, *flag)
        time.sleep(2)  # a rolling update waits until the new server is ready
    restarted.set()
    for thread in threads:
        thread.join()
    sent = outcomes.pop("sent")
    with capsys.disabled():
        print(
            f"\n{SERVERS} servers of {workers} workers restarted: {sent:,} sent, {sum(answered):,} answered, "
            f"failed: {dict(outcomes)}"
        )
    assert not outcomes
    assert sum(answered) == sent >= REQUESTS


def free_port():
    """Return a port that no program uses at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
