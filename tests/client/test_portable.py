"""The client classifies over a real connection on every system; these tests need no service of this project."""

import json
import subprocess
import sys

import numpy as np
from sketchbatch_client import AsyncClient, Client, rasterize
from stand_in_service import LABELS, stand_in_service


def sketchbatch(*arguments: object) -> subprocess.CompletedProcess:
    """Run a command of the client in a process of its own."""
    program = "from sketchbatch_client.cli import main; main()"
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_client_classifies_a_drawing():
    """Strokes become a bitmap, and the label of the bitmap arrives over gRPC."""
    bitmap = rasterize([[[10, 240, 120, 10], [240, 240, 20, 240]]])
    with stand_in_service() as (address, servicer), Client(address) as client:
        assert client.classify(bitmap).label[0] in LABELS
    assert servicer.requests == [1]


async def test_an_async_client_scores_batches(noise):
    """Results arrive in the order of the batches."""
    with stand_in_service() as (address, _):
        async with AsyncClient(address) as client:
            assert [len(part) async for part in client.score([noise(5), noise(7)])] == [5, 7]


def test_commands_score_a_file_to_standard_output(tmp_path, noise):
    """`sketchbatch score` writes one line per drawing to standard output, and `model` shows the labels."""
    np.save(tmp_path / "drawings.npy", noise(9))
    with stand_in_service() as (address, _):
        scored = sketchbatch(
            "score", tmp_path / "drawings.npy", "--format", "jsonl", "--output", "-", "--server", address
        )
        model = sketchbatch("model", "--json", "--server", address)
    assert scored.returncode == 0, scored.stderr
    assert len([json.loads(line) for line in scored.stdout.splitlines()]) == 9
    assert model.returncode == 0, model.stderr
    assert all(label in model.stdout for label in LABELS)
