"""Test that `score --append` loses and repeats no row if a run is interrupted or killed."""

import json
from pathlib import Path

import numpy as np
import pytest
from scored_inputs import rows_of, strokes
from sketchbatch_client.rpc.client import Client
from sketchbatch_client.scoring import parts
from sketchbatch_client.scoring.appending import append_scores
from sketchbatch_client.scoring.inputs import InputOptions
from sketchbatch_client.scoring.job import ProgressListener, ScoreJob
from sketchbatch_client.scoring.plan import ScoreOptions

pytestmark = pytest.mark.timeout(60)


class StopsAfter(ProgressListener):
    """Ends the run, as a kill does, after some rows."""

    def __init__(self, rows: int) -> None:
        self._left = rows

    def advances(self, rows: int) -> None:
        self._left -= rows
        if self._left < 0:
            raise KeyboardInterrupt


def job(folder: Path, part_rows: int = 1024) -> ScoreJob:
    return ScoreJob(
        inputs=[str(folder)],
        kind="csv",
        options=ScoreOptions(),
        part_rows=part_rows,
        readers=0,
        input_options=InputOptions(),
    )


def test_an_interrupted_run_resumes_and_then_adds_what_came_since(tiny_service, inputs, tmp_path, noise):
    """The rows with which the interrupted run began come first, then those that arrived meanwhile."""
    output = tmp_path / "o.csv"
    np.save(inputs / "b.npy", noise(10))
    with Client(tiny_service.address) as client:
        append_scores(client, job(inputs), output, StopsAfter(10**9))
        np.save(inputs / "c.npy", np.concatenate([noise(2000), noise(2000)]))
        with pytest.raises(KeyboardInterrupt):
            append_scores(client, job(inputs), output, StopsAfter(3000))
        assert len(rows_of(output)) == 10
        assert list((tmp_path / "o.csv.parts").glob("*.arrow"))
        np.save(inputs / "a.npy", noise(5))
        outcome = append_scores(client, job(inputs), output, StopsAfter(10**9))
    assert (outcome.rows, outcome.added) == (4015, 4005)
    expected = [("b.npy", row) for row in range(10)] + [("c.npy", row) for row in range(4000)]
    assert rows_of(output) == expected + [("a.npy", row) for row in range(5)]
    assert not (tmp_path / "o.csv.parts").exists()


@pytest.mark.parametrize("part_rows", [1024, 500])
def test_parts_of_other_rows_are_not_reused(tiny_service, inputs, tmp_path, noise, part_rows):
    """If an input was written anew after an interruption, or parts have another size, all its rows are scored anew."""
    output = tmp_path / "o.csv"
    np.save(inputs / "b.npy", noise(10))
    with Client(tiny_service.address) as client:
        append_scores(client, job(inputs), output, StopsAfter(10**9))
        np.save(inputs / "c.npy", np.zeros((4000, 28, 28), np.uint8))
        with pytest.raises(KeyboardInterrupt):
            append_scores(client, job(inputs), output, StopsAfter(3000))
        if part_rows == 1024:
            np.save(inputs / "c.npy", np.full((4000, 28, 28), 7, np.uint8))
        outcome = append_scores(client, job(inputs, part_rows), output, StopsAfter(10**9))
        assert (outcome.rows, outcome.added) == (4010, 4000)
        scores = {line.split(",")[3] for line in output.read_text().splitlines()[11:]}
        expected = client.classify(np.load(inputs / "c.npy")[:1]).scores.max()
    assert [float(score) for score in scores] == [pytest.approx(expected, abs=1e-6)]


@pytest.mark.parametrize("step", range(1, 6))
def test_a_kill_while_files_are_renamed_loses_nothing(tiny_service, inputs, tmp_path, monkeypatch, step):
    """After a power failure between any two renames, the next run finishes them or adds the rows anew, once."""
    output = tmp_path / "o.csv"
    (inputs / "a.ndjson").write_text(strokes(0, 3) + "no drawing\n")
    with Client(tiny_service.address) as client:
        append_scores(client, job(inputs), output, StopsAfter(10**9))
        (inputs / "b.ndjson").write_text(strokes(0, 3) + "no drawing\n")
        renames = 0
        rename = Path.replace

        def failing(path: Path, target: Path) -> Path:
            nonlocal renames
            if target in (output, parts.rejects_path(output), parts.manifest_path(output)) or "next" in target.name:
                renames += 1
                if renames == step:
                    raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing)
            if step < 5:
                with pytest.raises(KeyboardInterrupt):
                    append_scores(client, job(inputs), output, StopsAfter(10**9))
            else:
                append_scores(client, job(inputs), output, StopsAfter(10**9))
                assert renames == 4
        append_scores(client, job(inputs), output, StopsAfter(10**9))
    assert rows_of(output) == [(name, row) for name in ("a.ndjson", "b.ndjson") for row in range(3)]
    rejects = [json.loads(line) for line in Path(f"{output}.rejects.jsonl").read_text().splitlines()]
    assert [Path(reject["source"]).name for reject in rejects] == ["a.ndjson", "b.ndjson"]
    manifest = json.loads(Path(f"{output}.manifest.json").read_bytes())
    assert (manifest["rows"], manifest["rejected"]) == (6, 2)
    assert not (tmp_path / "o.csv.parts").exists()


def test_an_interrupted_first_run_resumes_although_files_have_come(tiny_service, inputs, tmp_path, noise):
    """The first run of --append resumes as later runs do."""
    output = tmp_path / "o.csv"
    np.save(inputs / "c.npy", np.concatenate([noise(2000), noise(2000)]))
    with Client(tiny_service.address) as client:
        with pytest.raises(KeyboardInterrupt):
            append_scores(client, job(inputs), output, StopsAfter(3000))
        np.save(inputs / "a.npy", noise(5))
        outcome = append_scores(client, job(inputs), output, StopsAfter(10**9))
    assert (outcome.rows, outcome.added) == (4005, 4005)
    assert rows_of(output) == [("c.npy", row) for row in range(4000)] + [("a.npy", row) for row in range(5)]
