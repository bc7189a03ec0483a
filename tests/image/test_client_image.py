"""The client's image runs the bulk jobs of deploy/bulk under their restrictions."""

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
    """Return a function that runs the container of a job's manifest as share `index`, in the network of a service."""
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


def test_the_shares_of_a_bulk_job_are_merged_into_one_file(run_job, noise, tmp_path):
    """Every drawing has one row, in order, and an invalid line fails no share."""
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


def test_a_failed_job_has_the_exit_code_of_its_command(run_job):
    """The manifest's shell hides only exit code 3; an unknown share is 2, and nothing to merge is 1."""
    assert run_job("score", SHARES).returncode == 2
    assert run_job("merge").returncode in (1, 2)


def test_the_image_draws_strokes_with_libcairo_and_without_root(docker, client_image):
    """Bulk scores refer to the bitmaps that Google published, which libcairo reproduces."""
    code = "import os; from sketchbatch_client.drawings import cairo; print(cairo.library() is not None, os.getuid())"
    assert docker("run", "--rm", "--network=none", "--entrypoint=python", client_image, "-c", code) == "True 65532"
