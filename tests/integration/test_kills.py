"""Test that a job produces byte-identical output although its client and its server are killed at random times.

The environment variable KILLS sets the number of kills. A test run without KILLS makes only a few kills.
"""

import json
import os
import random
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from conftest import BIN

KILLS = int(os.environ.get("KILLS", "4"))
ROWS, PART = 40_000, 512
# Longest wait before the next kill. It is not longer, because a client takes about 1 s to start, but only some
# milliseconds per part.
LONGEST_WAIT_S = 1.0


@pytest.fixture
def inputs(tmp_path):
    """Write a file of bitmaps, and a file of strokes with some malformed lines; return their paths."""
    rows = np.random.default_rng(3).integers(0, 256, (ROWS, 784), np.uint8)
    np.save(tmp_path / "a.npy", rows)
    lines = [json.dumps({"key_id": str(row + 1), "drawing": [[[row % 256, 255], [0, 255]]]}) for row in range(6000)]
    lines[100:5000:700] = ["malformed"] * 7
    (tmp_path / "b.ndjson").write_text("\n".join(lines))
    return [tmp_path / "a.npy", tmp_path / "b.ndjson"]


@pytest.mark.timeout(180 + 10 * KILLS)
def test_a_job_that_is_killed_repeatedly_produces_identical_output(inputs, tmp_path, start_service, tiny_model, capsys):
    """If the client or the server of a job is killed at any time, each row and reject is in the output exactly once."""
    chance = random.Random(11)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    service = start_service(tiny_model, "--address", address)

    def start(output):
        flags = ["--server", address, "--part-rows", str(PART), "--readers", "1", "--timeout-s", "20", "--quiet"]
        command = [BIN / "sketchbatch", "score", *inputs, "--output", output, *flags]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    undisturbed = tmp_path / "undisturbed.csv"
    process = start(undisturbed)
    assert (process.communicate(timeout=60), process.returncode)[1] == 3
    output = tmp_path / "killed.csv"
    kills = {"client": 0, "server": 0}
    runs = 0
    while sum(kills.values()) < KILLS:
        process = start(output)
        runs += 1
        while process.poll() is None and sum(kills.values()) < KILLS:
            time.sleep(chance.uniform(0, LONGEST_WAIT_S))
            victim = chance.choice(("client", "server"))
            if victim == "server":
                service.stop(signal.SIGKILL)
                service = start_service(tiny_model, "--address", address)
            elif process.poll() is None:
                process.kill()
                process.wait()
            else:
                continue
            kills[victim] += 1
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (1, 3, -signal.SIGKILL), errors
        # the job has finished before the last kill, so the test deletes its output and begins a new job
        if process.returncode == 3 and sum(kills.values()) < KILLS:
            assert_equal(output, undisturbed)
            for path in tmp_path.glob("killed.csv*"):
                path.unlink()
    for _ in range(3):  # the job may be unfinished after the last kill, so the test starts the client again
        process = start(output)
        _, errors = process.communicate(timeout=60)
        if process.returncode != 1:
            break
    assert process.returncode == 3, errors
    assert_equal(output, undisturbed)
    with capsys.disabled():
        print(f"\n{kills['client']} clients and {kills['server']} servers killed in {runs} runs: identical output")


def assert_equal(output, undisturbed):
    """Check that an output and its rejects file equal those of an undisturbed job, and that no parts remain."""
    for ending in ("", ".rejects.jsonl"):
        mine, other = (path.with_name(path.name + ending).read_bytes() for path in (output, undisturbed))
        assert mine == other
    assert not output.with_name(f"{output.name}.parts").exists()
