"""A child process that was forked while other threads classify may use the client of its parent."""

import os
import subprocess
import sys

import pytest

FORKING = """
import faulthandler, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import grpc
import numpy as np
from sketchbatch_client import Client

client = Client(sys.argv[1])
bitmaps = np.zeros((1, 28, 28), np.uint8)
begun, is_over = threading.Semaphore(0), threading.Event()

def classify_until_over():
    while not is_over.is_set():
        client.classify(bitmaps)
        begun.release()

threads = [threading.Thread(target=classify_until_over) for _ in range(8)]
for thread in threads:
    thread.start()
for _ in range(5):
    for _ in range(40):
        begun.acquire()
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(10, exit=True)  # a lock that no thread will release
        with ThreadPoolExecutor(8) as pool:  # an exception ends the child like any program
            assert all(len(each) == 1 for each in pool.map(lambda _: client.classify(bitmaps), range(100)))
        assert sum(map(len, client.score([bitmaps] * 100))) == 100
        assert client.health() == "SERVING"
        client.close()
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        print(f"the child ended with the wait status {status}", file=sys.stderr, flush=True)
        os._exit(3)  # the other threads would run on after an exception
is_over.set()
for thread in threads:
    thread.join()
assert len(client.classify(bitmaps)) == 1
client.close()
grpc.insecure_channel = lambda *_: print("a closed client opened a connection", flush=True)
if os.fork() == 0:
    try:
        client.classify(bitmaps)
    except Exception as exc:
        print(exc)
    os._exit(0)
os.wait()
"""


@pytest.mark.timeout(80)
def test_a_child_uses_the_client_of_its_parent(tiny_service):
    """The child has its own connections and locks, and the parent's calls continue; a closed client stays closed.

    The environment has the variable without which gRPC does not support forks (client/README.md).
    """
    command = [sys.executable, "-c", FORKING, tiny_service.address]
    environment = os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=70)
    assert (ended.returncode, ended.stdout) == (0, "the client was closed\n"), ended.stderr
