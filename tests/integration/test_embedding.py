"""Test that a program can run the service on its own event loop and continues unchanged after the service has ended."""

import subprocess
import sys

import pytest


@pytest.mark.timeout(60)
@pytest.mark.parametrize("transport", ["core", pytest.param("aio", marks=pytest.mark.slow)])
def test_a_program_outlives_the_service_that_it_embeds(root, tiny_model, transport):
    """After `serve` has ended, the program has its signal handlers back, and no more threads or sockets than before.

    The program continues to run after the time limit at which the service ends a process whose stop does not finish.
    """
    shows_leaks = ("-W", "always::ResourceWarning")  # prints a warning for each socket that was not closed
    command = [sys.executable, *shows_leaks, root / "tests" / "embedding_program.py", tiny_model, transport]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert (finished.returncode, finished.stdout.strip(), finished.stderr) == (0, "done", "")
