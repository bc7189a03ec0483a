"""Several processes on one port: as one service to those outside, whatever happens to one of them."""

import os
import signal
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from worker_processes import children

pytestmark = pytest.mark.timeout(60)  # each test starts three processes


def ask(address: str, call):
    """Calls with a stub over a connection of its own."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return call(classifier_pb2_grpc.ClassifierServiceStub(channel))


def worker_numbers(address: str, connections: int = 40) -> set[int]:
    """The workers that answer, each over at least one of many connections."""
    return {ask(address, lambda stub: stub.GetModel(pb.GetModelRequest()).model.worker) for _ in range(connections)}


def wait_for(is_so, limit_s: float = 20):
    """Waits until `is_so`."""
    give_up_at = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_every_worker_answers_on_the_same_port_and_says_which_it_is(start_service, tiny_model, noise):
    """Connections are spread over them, their answers are the same, and SIGTERM ends them all well."""
    service = start_service(tiny_model, "--workers", "2")
    model = ask(service.address, lambda stub: stub.GetModel(pb.GetModelRequest()).model)
    assert model.workers == 2
    assert worker_numbers(service.address) == {1, 2}
    request = pb.ClassifyRequest(bitmaps=noise(10).tobytes())
    answers = {ask(service.address, lambda stub: stub.Classify(request).scores) for _ in range(20)}
    assert len(answers) == 1
    assert np.frombuffer(answers.pop(), "<f4").shape == (30,)
    workers = children(service.process.pid)
    code, log = service.stop()
    assert (len(workers), code) == (2, 0)
    assert sorted(event.get("worker", 0) for event in log if event["message"] == "stopped") == [0, 1, 2]
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_worker_that_is_killed_is_replaced(start_service, tiny_model):
    """The other goes on answering meanwhile; the new one sits in the same place."""
    service = start_service(tiny_model, "--workers", "2")
    victim = children(service.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{victim}").exists())  # until it is reaped the kernel may give it connections
    assert worker_numbers(service.address, 5) <= {1, 2}  # the new one may be there by now; none of five was refused
    wait_for(lambda: worker_numbers(service.address) == {1, 2})
    code, log = service.stop()
    assert code == 0
    assert [event["exit_code"] for event in log if event["message"].startswith("worker died")] == [-signal.SIGKILL]


def test_workers_end_with_their_parent(start_service, tiny_model):
    """None is left behind holding the port."""
    service = start_service(tiny_model, "--workers", "2")
    workers = children(service.process.pid)
    service.stop(signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_what_keeps_workers_from_starting_is_one_line(run_command, start_service, tiny_model):
    """As with a single process: the cause, once, and nothing left running."""
    service = start_service(tiny_model, "--workers", "2")
    for model, address, cause in [
        ("none.onnx", "127.0.0.1:0", "none.onnx: no such model file"),
        (tiny_model, service.address, f"cannot listen on {service.address}: Address already in use"),
    ]:
        refused = run_command("sketchbatch-serve", "--model", model, "--address", address, "--workers", "2")
        said = [line for line in refused.stderr.splitlines() if not line.startswith("{")]
        assert (refused.returncode, said) == (1, [f"sketchbatch-serve: {cause}"])
