"""Test that the image of the client runs the bulk jobs of deploy/bulk under the restrictions of Kubernetes."""

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
    """Return a function that runs the container of a bulk job with the command in the job's manifest.

    The container runs as index `index` of the job, in the network of a running service.
    """
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
    """The merged output of the eight shards has one row per drawing, in order.

    An invalid line of the input becomes a reject and does not fail its shard.
    """
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
    """The container has the exit code of its command, except that exit code 3, for rejects, becomes 0.

    An unknown shard has exit code 2. A merge without shards has exit code 1 or 2.
    """
    assert run_job("score", SHARES).returncode == 2
    assert run_job("merge").returncode in (1, 2)


def test_the_image_draws_strokes_with_libcairo_and_without_root(docker, client_image):
    """The image renders strokes with libcairo, which reproduces the bitmaps that Google published.

    The user of the image is not root.
    """
    code = "import os; from sketchbatch_client.drawings import cairo; print(cairo.library() is not None, os.getuid())"
    assert docker("run", "--rm", "--network=none", "--entrypoint=python", client_image, "-c", code) == "True 65532"
