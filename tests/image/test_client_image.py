"""The client's image does what the bulk jobs of deploy/bulk ask of it, under their restrictions."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from container_engine import RESTRICTED

pytestmark = [pytest.mark.image, pytest.mark.timeout(300, func_only=True)]

SHARES = 8


@pytest.fixture
def run_job(docker, client_image, start_pod, root, tmp_path):
    """Runs the container of a job's manifest, in the network of a service, as share `index`; exit code and words."""
    drawings, scores = tmp_path / "drawings", tmp_path / "scores"
    service = start_pod()
    service.wait_for_serving()
    flags = [flag for flag in RESTRICTED if not flag.startswith("--network")]
    flags += [f"--network=container:{service.id}", "--memory=1g", "--memory-swap=1g", "--tmpfs=/tmp"]
    flags += [f"--volume={drawings}:/drawings:ro", f"--volume={scores}:/scores"]
    for folder in (tmp_path, drawings, scores):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)

    def run(job: str, index: int = 0):
        manifest = yaml.safe_load((root / "deploy" / "bulk" / job / "job.yaml").read_text())
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        environment = [f"--env=JOB_COMPLETION_INDEX={index}", "--env=SKETCHBATCH_SERVER=127.0.0.1:50051"]
        entrypoint, *words = container["command"] + container["args"]
        return docker.attempt("run", "--rm", *flags, *environment, f"--entrypoint={entrypoint}", client_image, *words)

    return run


def test_a_bulk_job_s_shares_become_one_file(run_job, noise, tmp_path):
    """Every drawing has its row, in order, and a line that is no drawing fails no share."""
    np.save(tmp_path / "drawings" / "a.npy", noise(100))
    line = json.dumps({"word": "cat", "drawing": [[[0, 255, 128], [0, 128, 255]]]})
    (tmp_path / "drawings" / "b.ndjson").write_text(f"{line}\n{{}}\n{line}\n")
    for index in range(SHARES):
        finished = run_job("score", index)
        assert finished.returncode == 0, finished.stderr
    merged = run_job("merge")
    assert merged.returncode == 0, merged.stderr
    rejects = (tmp_path / "scores" / "labels.parquet.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in rejects] == [1]
    rows = pq.read_table(tmp_path / "scores" / "labels.parquet")["row"].to_pylist()
    assert rows == [*range(100), 0, 2]


def test_a_job_that_fails_ends_with_the_command_s_own_code(run_job):
    """The shell around it hides 3 alone: here share 8 of 8, which is misspelt (2), and nothing to merge (1)."""
    assert run_job("score", SHARES).returncode == 2
    assert run_job("merge").returncode in (1, 2)


def test_it_draws_strokes_with_libcairo_as_nobody(docker, client_image):
    """So that bulk scores are of the bitmaps that Google published; and there is neither pip nor root."""
    code = "import os; from sketchbatch_client.drawings import cairo; print(cairo.library() is not None, os.getuid())"
    assert docker("run", "--rm", "--network=none", "--entrypoint=python", client_image, "-c", code) == "True 65532"
