"""Run the bulk Jobs of deploy/bulk with the commands of docs/bulk-scoring.md, without a cluster: pods are processes."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_cluster import BulkCluster
from bulk_guide import Guide

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]


@pytest.fixture
def guide(root, tmp_path, tiny_service):
    """Return a `Guide`, which runs the commands of the page in a prepared folder."""
    kubectl = os.environ.get("KUBECTL") or str(root / ".tools" / "k8s" / "bin" / "kubectl")
    cluster = BulkCluster(folder=str(tmp_path / "cluster"), kubectl=kubectl, server=tiny_service.address)
    (tmp_path / "user" / "drawings").mkdir(parents=True)
    return Guide(root, tmp_path / "user", cluster.environment())


@pytest.fixture
def score(run_command, tiny_service, tmp_path):
    """Return a function that scores the drawings on the volume without shards, and returns the path of the output."""

    def run(output: Path):
        words = [tmp_path / "cluster" / "drawings", "--output", output, "--server", tiny_service.address]
        assert run_command("sketchbatch", "score", *words).returncode == 0
        return output

    return run


def test_two_runs_on_changed_drawings_give_two_right_results(guide, score, noise, tmp_path):
    """Two bulk runs with the commands of the page, with changed drawings in the second run, give the right labels.

    Each step prints the output that the page shows. Only for the network policy, which exists already, the second run
    prints "unchanged" instead of "created".
    """
    rows = noise(9000)
    np.save(guide.folder / "drawings" / "a.npy", rows)
    for step, output in guide.run("2026-11-30"):
        assert output == step.output
    first = score(tmp_path / "first.parquet")
    np.save(guide.folder / "drawings" / "a.npy", 255 - rows)
    for step, output in guide.run("second"):
        assert output == step.output.replace("sketchbatch-scoring created", "sketchbatch-scoring unchanged")
    second = score(tmp_path / "second.parquet")
    assert (guide.folder / "labels-2026-11-30.parquet").read_bytes() == first.read_bytes()
    assert (guide.folder / "labels-second.parquet").read_bytes() == second.read_bytes()
    assert pq.read_table(first)["score"] != pq.read_table(second)["score"]


def test_the_name_of_a_run_cannot_be_used_for_changed_drawings(guide, noise):
    """A bulk run with changed drawings and the name of a finished run scores nothing.

    While the Job of the finished run exists, kubectl prints "unchanged". After the Job is deleted, each shard fails
    without a retry.
    """
    np.save(guide.folder / "drawings" / "a.npy", noise(9000))
    guide.run("first")
    np.save(guide.folder / "drawings" / "a.npy", 255 - noise(9000))
    assert "job.batch/sketchbatch-score-first unchanged" in guide.run("first")[2][1]
    guide.shell("kubectl -n sketchbatch delete job sketchbatch-score-first")
    assert guide.run("first", first=2, last=4)[1][1] == "Failed\n"
    failed, *lines = guide.run("first", "Failed runs", last=1)[0][1].splitlines()
    assert failed == "0,1,2,3,4,5,6,7"
    assert len(lines) == 8  # one pod per shard
    assert all("was begun differently: the contents of" in line for line in lines)


def test_a_damaged_file_fails_only_its_shards_and_the_others_are_kept(guide, noise, tmp_path):
    """If a file is damaged, only the shards with its damaged rows fail.

    After the file is replaced, a new start of the bulk run under the same name scores only the failed shards.
    """
    file = guide.folder / "drawings" / "a.parquet"
    bitmaps = [bitmap.tobytes() for bitmap in noise(16384)]
    pq.write_table(pa.table({"bitmap": bitmaps}), file, row_group_size=1024, compression="zstd")
    good = file.read_bytes()
    page = pq.read_metadata(file).row_group(8).column(0).data_page_offset  # read by shard 4 only
    file.write_bytes(good[:page] + bytes(100) + good[page + 100 :])
    assert guide.run("first", last=4)[3][1] == "Failed\n"
    scores = tmp_path / "cluster" / "scores" / "first"
    kept = {path: path.stat().st_mtime_ns for path in scores.glob("labels-*-of-00008.parquet")}
    assert len(kept) == 7
    file.write_bytes(good)
    guide.run("first", first=1, last=2)
    guide.run("first", "Failed runs", first=1, last=2)
    guide.run("first", first=3)
    assert pq.read_table(guide.folder / "labels-first.parquet").num_rows == 16384
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
