"""Test that the image of the client runs the bulk jobs of deploy/bulk under the restrictions of Kubernetes.

The tests use the commands of docs/bulk-scoring.md. `bulk_cluster` runs each pod as a container.
"""

import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from bulk_cluster import BulkCluster
from bulk_guide import Guide
from container_engine import RESTRICTED

pytestmark = [pytest.mark.image, pytest.mark.timeout(600, func_only=True)]


@pytest.fixture
def guide(docker, client_image, start_pod, root, tmp_path):
    """Return a `Guide`, which runs the commands of the page; its pods share the network of a running service."""
    service = start_pod()
    service.wait_for_serving()
    folder = tmp_path / "cluster"
    flags = [flag for flag in RESTRICTED if not flag.startswith("--network")]
    flags += [f"--network=container:{service.id}", "--memory=1g", "--memory-swap=1g", "--tmpfs=/tmp"]
    flags += [f"--volume={folder}/drawings:/drawings:ro", f"--volume={folder}/scores:/scores"]
    kubectl = os.environ.get("KUBECTL") or str(root / ".tools" / "k8s" / "bin" / "kubectl")
    cluster = BulkCluster(
        folder=str(folder),
        kubectl=kubectl,
        server="127.0.0.1:50051",
        container=["docker", "run", "--rm", *flags],
        image=client_image,
    )
    (tmp_path / "user" / "drawings").mkdir(parents=True)
    for path in (tmp_path, folder):
        path.mkdir(exist_ok=True)
        path.chmod(0o777)
    return Guide(root, tmp_path / "user", {**docker.environment, **cluster.environment()})


def test_two_runs_on_changed_drawings_give_two_right_results(guide, noise, tmp_path):
    """The result of each bulk run has one row per drawing, in order, with the scores of the drawings of this run.

    An invalid line of the input becomes a reject and does not fail its shard. The third run has the drawings of the
    first run, and therefore the same result.
    """
    drawings, bitmaps = guide.folder / "drawings", noise(3000)
    line = json.dumps({"word": "cat", "drawing": [[[0, 255, 128], [0, 128, 255]]]})
    (drawings / "b.ndjson").write_text(f"{line}\n{{}}\n{line}\n")
    results = []
    for name, rows in (("first", bitmaps), ("second", 255 - bitmaps), ("third", bitmaps)):
        np.save(drawings / "a.npy", rows)
        guide.run(name)
        rejects = (tmp_path / "cluster" / "scores" / name / "labels.parquet.rejects.jsonl").read_text().splitlines()
        assert [json.loads(reject)["row"] for reject in rejects] == [1]
        results.append(pq.read_table(guide.folder / f"labels-{name}.parquet"))
        assert results[-1]["row"].to_pylist() == [*range(3000), 0, 2]
    first, second, third = results
    assert first == third
    assert first["score"][:3000] != second["score"][:3000]
    assert first["score"][3000:] == second["score"][3000:]


def test_a_failed_job_names_the_reason(guide, noise):
    """If the drawings of a bulk run have changed, it fails without a retry, because its containers exit with code 4."""
    np.save(guide.folder / "drawings" / "a.npy", noise(100))
    guide.run("first")
    np.save(guide.folder / "drawings" / "a.npy", noise(101))
    guide.run("first", first=1, last=2)
    guide.shell("kubectl -n sketchbatch delete job sketchbatch-score-first")
    assert guide.run("first", first=2, last=4)[1][1] == "Failed\n"
    failed, *lines = guide.run("first", "Failed runs", last=1)[0][1].splitlines()
    assert failed == "0,1,2,3,4,5,6,7"
    assert [("had 100 rows, and now has 101" in line) for line in lines] == [True] * 8


def test_the_image_draws_strokes_with_libcairo_and_without_root(docker, client_image):
    """The image renders strokes with libcairo, which reproduces the bitmaps that Google published.

    The user of the image is not root.
    """
    program = "from sketchbatch_client.drawings.rendering import cairo; print(cairo.library() is not None, os.getuid())"
    assert (
        docker("run", "--rm", "--network=none", "--entrypoint=python", client_image, "-c", f"import os; {program}")
        == "True 65532"
    )
