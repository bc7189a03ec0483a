"""Test that several worker processes on one port act as one service, even if one worker dies."""

import os
import resource
import signal
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from sketchbatch.v1 import classifier_pb2 as pb
from sketchbatch.v1 import classifier_pb2_grpc
from worker_processes import children

pytestmark = [pytest.mark.timeout(60), pytest.mark.both_transports]  # each test starts three processes


def call_once(address: str, call):
    """Open a new connection, call the function `call` with a stub for it, and return the function's result."""
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return call(classifier_pb2_grpc.ClassifierServiceStub(channel))


def worker_numbers(address: str, connections: int = 40) -> set[int]:
    """Open many connections, and return the numbers of the workers that respond."""
    return {
        call_once(address, lambda stub: stub.GetModel(pb.GetModelRequest()).model.worker) for _ in range(connections)
    }


def wait_for(is_true, limit_s: float = 40):
    """Wait until `is_true` returns True."""
    give_up_at = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def test_every_worker_answers_on_the_same_port(start_service, tiny_model, noise):
    """The kernel spreads connections over all workers, and SIGTERM stops all workers with exit code 0."""
    service = start_service(tiny_model, "--workers", "2")
    model = call_once(service.address, lambda stub: stub.GetModel(pb.GetModelRequest()).model)
    assert model.workers == 2
    assert worker_numbers(service.address) == {1, 2}
    request = pb.ClassifyRequest(bitmaps=noise(10).tobytes())
    answers = {call_once(service.address, lambda stub: stub.Classify(request).scores) for _ in range(20)}
    assert len(answers) == 1
    assert np.frombuffer(answers.pop(), "<f4").shape == (30,)
    workers = children(service.process.pid)
    code, log = service.stop()
    assert (len(workers), code) == (2, 0)
    assert sorted(event.get("worker", 0) for event in log if event["message"] == "stopped") == [0, 1, 2]
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_worker_that_is_killed_is_replaced(start_service, tiny_model):
    """A worker that is killed is replaced by a new worker with the same number.

    Until the new worker is ready, the other worker responds to calls.
    """
    service = start_service(tiny_model, "--workers", "2")
    victim = children(service.process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    # until the victim has ended, the kernel may assign connections to it
    wait_for(lambda: not Path(f"/proc/{victim}").exists())
    assert worker_numbers(service.address, 5) <= {1, 2}  # no connection is refused while one worker is missing
    assert service.wait_for("worker died, starting another")["exit_code"] == -signal.SIGKILL
    service.wait_for("worker serves again")
    assert worker_numbers(service.address) == {1, 2}
    code, log = service.stop()
    assert code == 0
    assert not [event for event in log if event["message"].startswith("worker died")]


@pytest.mark.slow
def test_workers_come_back_after_descriptors_ran_out(start_service, tiny_model):
    """A worker that dies while the supervisor has no file descriptor left is started again when there is one.

    The log has the cause. SIGTERM while a worker is missing stops the service with exit code 0.
    """
    service = start_service(tiny_model, "--workers", "2")
    supervisor = service.process.pid
    soft, hard = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    for lifts_limit in (True, True, False):
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, hard))  # 0, 1 and 2 are open
        os.kill(children(supervisor)[0], signal.SIGKILL)
        failed = service.wait_for("worker not started, trying again")
        assert "Too many open files" in failed["reason"]
        assert (failed["serving"], failed["wanted"]) == (1, 2)
        if lifts_limit:
            resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, hard))
            restored = service.wait_for("worker serves again")
            assert (restored["serving"], restored["wanted"]) == (2, 2)
    code, _ = service.stop()
    assert code == 0


def test_workers_stop_with_their_parent(start_service, tiny_model):
    """After the supervisor is killed, all its workers exit, so that no worker keeps the port."""
    service = start_service(tiny_model, "--workers", "2")
    workers = children(service.process.pid)
    service.stop(signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_a_failed_start_of_workers_prints_one_line(run_command, start_service, tiny_model):
    """If several workers fail to start, the service prints the cause in one line, and not once per worker."""
    service = start_service(tiny_model, "--workers", "2")
    for model, address, cause in [
        ("none.onnx", "127.0.0.1:0", "none.onnx: no such model file"),
        (tiny_model, service.address, f"cannot listen on {service.address}: Address already in use"),
    ]:
        refused = run_command("sketchbatch-serve", "--model", model, "--address", address, "--workers", "2")
        errors = [line for line in refused.stderr.splitlines() if not line.startswith("{")]
        assert (refused.returncode, errors) == (1, [f"sketchbatch-serve: {cause}"])
