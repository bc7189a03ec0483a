"""A job whose client and server are killed again and again, at random moments, ends in the bytes of one that was not.

`make kills KILLS=50` is the long proof; a few kills run with every test.
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
LONGEST_WAIT_S = 1.0  # before the next kill: a start of the client takes about as long, a part some milliseconds


@pytest.fixture
def inputs(tmp_path):
    """Bitmaps, and strokes of which some lines are no drawing: two processes draw those."""
    rows = np.random.default_rng(3).integers(0, 256, (ROWS, 784), np.uint8)
    np.save(tmp_path / "a.npy", rows)
    lines = [json.dumps({"key_id": str(row + 1), "drawing": [[[row % 256, 255], [0, 255]]]}) for row in range(6000)]
    lines[100:5000:700] = ["no drawing"] * 7
    (tmp_path / "b.ndjson").write_text("\n".join(lines))
    return [tmp_path / "a.npy", tmp_path / "b.ndjson"]


@pytest.mark.timeout(60 + 5 * KILLS)
def test_killed_again_and_again_it_ends_in_the_same_bytes(inputs, tmp_path, start_service, tiny_model, capsys):
    """No row lost, none twice, rejects too; whoever is killed, and whenever."""
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
            whom = chance.choice(("client", "server"))
            if whom == "server":
                service.stop(signal.SIGKILL)
                service = start_service(tiny_model, "--address", address)
            elif process.poll() is None:
                process.kill()
                process.wait()
            else:
                continue
            kills[whom] += 1
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (1, 3, -signal.SIGKILL), errors
        if process.returncode == 3 and sum(kills.values()) < KILLS:  # it got through: the next kills want a job
            same(output, undisturbed)
            for path in tmp_path.glob("killed.csv*"):
                path.unlink()
    for _ in range(3):  # a killed server may have been the end of the last run
        process = start(output)
        _, errors = process.communicate(timeout=60)
        if process.returncode != 1:
            break
    assert process.returncode == 3, errors
    same(output, undisturbed)
    with capsys.disabled():
        print(f"\n{kills['client']} clients and {kills['server']} servers killed in {runs} runs: the same bytes")


def same(output, undisturbed):
    """Rows and rejects, and nothing left of the way there."""
    for ending in ("", ".rejects.jsonl"):
        mine, other = (path.with_name(path.name + ending).read_bytes() for path in (output, undisturbed))
        assert mine == other
    assert not output.with_name(f"{output.name}.parts").exists()
